"""What a person sees while a run trains: a line a round."""

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
    """One line a round while `thread` lives: round, groups/s, reward at eta 0, time left.

    Tells the coordinator all along what it must know, and a request to stop.

    expected: seconds of a round by phase, of which only the proportions matter: phases differ in what a round costs.
    """
    plan = run.plan
    cost = [expected[plan.phase(r).name] for r in range(plan.rounds)]
    last, began = -1, time.monotonic()
    begin = partial(run.coordinator.begin.remote, run.folder.state["calibration"])
    told, telling = begin(), Telling()
    first: int | None = None
    reward: float | None = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if ray.wait([told], timeout=0)[0]:
            if not ray.get(told) and telling.due() and (missing := learner_waits(run.config.learner)):
                log.warning("waiting for room for the learner: %s", missing)
            told = begin()  # once more: the one that knew may be lost
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
