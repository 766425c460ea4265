"""The rounds of a run, told while the learner is at work in another thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import ray

from redif_ray.cluster.placement import Telling, learner_waits
from redif_ray.coordinator.client import ask_to_stop
from redif_ray.job.progress import TRAINING, Progress
from redif_ray.job.session import POLL_SECONDS, Session
from redif_ray.learning.unlearned import Streak
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.round_report import RoundReport

REWARD = "validation/reward"
log = logging.getLogger(__name__)


def show_rounds(
    run: Session,
    thread: threading.Thread,
    cost: list[float],
    progress: Progress,
    on_round: Callable[[RoundReport], object] = lambda _: None,
) -> None:
    """Tell the rounds while `thread` lives: round, phase, groups/s, the reward in validation, and the time left.

    The loop also repeats the calibration to the coordinator, which may have restarted, forwards a request to stop, and
    warns while the learner waits for room.

    cost: the expected seconds of each round of this run.
    on_round: function that gets the report of every round which ends for the first time; a round that a resumed run
        repeats is left out. An error that it raises ends the run, which can be resumed.
    """
    rows = read_rows(run.folder.path / "metrics.jsonl")
    last = max((row["round"] for row in rows), default=-1)
    reward = next((row[REWARD] for row in reversed(rows) if REWARD in row), None)
    begin = partial(run.coordinator.begin.remote, run.folder.state["calibration"])
    answer, telling, measured, streak = begin(), Telling(), False, Streak()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if ray.wait([answer], timeout=0)[0]:
            if not ray.get(answer) and telling.due() and (missing := learner_waits(run.config.learner)):
                log.warning("waiting for room for the learner: %s", missing)
            answer = begin()  # again, because a restarted coordinator has forgotten the calibration
        run.look_after()
        if run.stop.requested:
            ask_to_stop(run.coordinator)
        for row in ray.get(run.writer.latest.remote(last)):
            last, reward = row["round"], row.get(REWARD, reward)
            share = sum(cost[: last + 1]) / sum(cost)
            if not measured:  # the first round of a start takes longer
                progress.begin(TRAINING, share)
                measured = True
            report = RoundReport(last + 1, len(cost), row["phase"], row, reward, progress.left())
            progress.at(share, _line(run, report), line=REWARD in row or report.done == report.rounds)
            if (warning := streak.warning(row)) is not None:
                log.warning("%s", warning)
            on_round(report)


def _line(run: Session, report: RoundReport) -> str:
    phase, speed = run.plan.named(report.phase).title, report.metrics["groups_per_second"]
    reward = "-" if report.reward is None else f"{report.reward:+.5f}"
    done = f"{report.done:{len(str(report.rounds))}d}/{report.rounds}"
    return f"round {done}  {phase}  {speed:.1f} groups/s  validation {reward}"
