"""The progress of a training run on the terminal, one line per round."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray
from rich.console import Console

from redif_ray.cluster.placement import Telling, learner_waits
from redif_ray.coordinator.client import ask_to_stop
from redif_ray.job.session import POLL_SECONDS, Session
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.round_report import RoundReport

REWARD = "validation/reward"
log = logging.getLogger(__name__)


def show_progress(
    run: Session,
    thread: threading.Thread,
    expected: Mapping[str, float],
    console: Console,
    on_round: Callable[[RoundReport], object] = lambda _: None,
) -> None:
    """Print one line per round while `thread` lives: round, groups/s, reward at eta 0, time left.

    The loop also repeats the calibration to the coordinator, which may have restarted, forwards a request to stop, and
    warns while the learner waits for room.

    expected: {phase: estimated seconds of a round}. Only the proportions matter, because the measured pace scales them.
    on_round: function that gets the report of every round which ends for the first time; a round that a resumed run
        repeats is left out. An error that it raises ends the run, which can be resumed.
    """
    rows = read_rows(run.folder.path / "metrics.jsonl")
    progress = _Progress([expected[run.plan.phase(r).name] for r in range(run.plan.rounds)], rows)
    begin = partial(run.coordinator.begin.remote, run.folder.state["calibration"])
    answer, telling = begin(), Telling()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if ray.wait([answer], timeout=0)[0]:
            if not ray.get(answer) and telling.due() and (missing := learner_waits(run.config.learner)):
                log.warning("waiting for room for the learner: %s", missing)
            answer = begin()  # again, because a restarted coordinator has forgotten the calibration
        run.look_after()
        if run.stop.requested:
            ask_to_stop(run.coordinator)
        for row in ray.get(run.writer.latest.remote(progress.last)):
            report = progress.report(row)
            _print(report, console)
            on_round(report)


class _Progress:
    """Makes the report of each new round.

    cost: estimated seconds of each round of the run. rows: the rows of the rounds that ended before this start.
    """

    def __init__(self, cost: list[float], rows: list[dict[str, Any]]) -> None:
        self.cost, self.reward = cost, None
        self.last = max((row["round"] for row in rows), default=-1)
        self.first: tuple[int, float] | None = None  # the first round of this start, and when its row came
        for row in rows:
            self.reward = row.get(REWARD, self.reward)

    def report(self, row: dict[str, Any]) -> RoundReport:
        self.last, self.reward = row["round"], row.get(REWARD, self.reward)
        if self.first is None:
            self.first = self.last, time.monotonic()
        first, began = self.first
        done = sum(self.cost[first + 1 : self.last + 1])
        ahead = sum(self.cost[self.last + 1 :])
        left = (time.monotonic() - began) / done * ahead if done else None
        return RoundReport(self.last + 1, len(self.cost), row["phase"], row, self.reward, left)


def _print(report: RoundReport, console: Console) -> None:
    """Print a line that the next one overwrites, or every tenth line where nothing can be overwritten."""
    row = report.metrics
    stays = REWARD in row or report.done == report.rounds
    if not console.is_terminal and row["round"] % 10 and not stays:
        return
    left = "   ?" if report.seconds_left is None else f"{report.seconds_left:4.0f}"
    shown = "      -" if report.reward is None else f"{report.reward:+.5f}"
    console.print(
        f"round {report.done:4d}/{report.rounds}  {report.phase:<10}  {row['groups_per_second']:6.1f} groups/s  "
        f"reward at eta 0 {shown}  {left} s left",
        end="\r" if console.is_terminal and not stays else "\n",
        highlight=False,
        soft_wrap=True,
    )
