"""The progress of a training run on the terminal, one line per round."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial

import ray
from rich.console import Console

from redif_ray.cluster.placement import Telling, learner_waits
from redif_ray.job.session import POLL_SECONDS, Session

log = logging.getLogger(__name__)


def show_progress(run: Session, thread: threading.Thread, expected: Mapping[str, float], console: Console) -> None:
    """Print one line per round while `thread` lives: round, groups/s, reward at eta 0, time left.

    The loop also repeats the calibration to the coordinator, which may have restarted, forwards a request to stop, and
    warns while the learner waits for room.

    expected: {phase: estimated seconds of a round}. Only the proportions matter, because the measured pace scales them.
    """
    plan = run.plan
    cost = [expected[plan.phase(r).name] for r in range(plan.rounds)]
    last, began = -1, time.monotonic()
    begin = partial(run.coordinator.begin.remote, run.folder.state["calibration"])
    answer, telling = begin(), Telling()
    first: int | None = None
    reward: float | None = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if ray.wait([answer], timeout=0)[0]:
            if not ray.get(answer) and telling.due() and (missing := learner_waits(run.config.learner)):
                log.warning("waiting for room for the learner: %s", missing)
            answer = begin()  # again, because a restarted coordinator has forgotten the calibration
        run.look_after()
        if run.stop.requested:
            run.coordinator.stop.remote()
        for row in ray.get(run.writer.latest.remote(last)):
            last = row["round"]
            if first is None:
                first, began = last, time.monotonic()
            reward = row.get("validation/reward", reward)
            if not console.is_terminal and last % 10 and last + 1 < plan.rounds and "validation/reward" not in row:
                continue
            done = sum(cost[first + 1 : last + 1])
            pace = (time.monotonic() - began) / done if done else None
            left = "   ? s left" if pace is None else f"{pace * sum(cost[last + 1 :]):4.0f} s left"
            shown = "      -" if reward is None else f"{reward:+.5f}"
            end = "\r" if console.is_terminal and last + 1 < plan.rounds and "validation/reward" not in row else "\n"
            console.print(
                f"round {last + 1:4d}/{plan.rounds}  {row['phase']:<10}  {row['groups_per_second']:6.1f} groups/s  "
                f"reward at eta 0 {shown}  {left}",
                end=end,
                highlight=False,
                soft_wrap=True,
            )
