"""The journal of a course: a line a trial that is over, synced to disk, and what is running."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from redif_ray.runs.jsonl import append_rows, read_rows
from redif_ray.trials.plan import Course


class Journal:
    """What is in `path` is taken up; `report` is told of each trial that ends from here on."""

    def __init__(self, course: Course[Any, Any], path: Path, report: Callable[[Any], None]) -> None:
        self.course, self.path, self.report = course, path, report
        self.running: dict[str, tuple[Any, dict[str, Any], list[float]]] = {}
        for row in read_rows(path):
            course.record(course.restored(row))
        self.pending = course.missing()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, to restore it; here nothing is restored but from the file."""
        return {}

    def start(self, trial_id: str) -> dict[str, Any] | None:
        """What the next trial tries; None where it must wait for others."""
        slot = self.pending[0]
        if not self.course.ready(slot):
            return None
        proposal = self.course.proposal(slot)
        self.pending.pop(0)
        self.running[trial_id] = (slot, proposal, [])
        return proposal

    def scored(self, trial_id: str, place: int, score: float) -> bool:
        """Note the `place`-th score of a trial, once more where its process was lost; whether the trial goes on."""
        slot, _, scores = self.running[trial_id]
        scores[place:] = [score]
        return self.course.goes_on(slot, scores)

    def over(self, trial_id: str, error: str | None = None) -> None:
        """Keep what came of a trial."""
        slot, proposal, scores = self.running.pop(trial_id)
        trial = self.course.over(slot, proposal, scores, error)
        append_rows(self.path, [trial.row()])
        self.course.record(trial)
        self.report(trial)

    def drop(self, trial_id: str) -> None:
        """Forget a trial that was asked to stop: it is done again when the course goes on."""
        self.running.pop(trial_id)
