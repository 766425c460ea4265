"""The journal of a plan: a line a trial that is over, synced to disk, and what is running."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from redif_ray.runs.jsonl import append_rows, read_rows
from redif_ray.trials.plan import Plan


class Journal:
    """What is in `path` is taken up; `report` is told of each trial that ends from here on."""

    def __init__(self, plan: Plan[Any, Any], path: Path, report: Callable[[Any], None]) -> None:
        self.plan, self.path, self.report = plan, path, report
        self.running: dict[str, tuple[Any, dict[str, Any], list[float]]] = {}
        for row in read_rows(path):
            plan.record(plan.restored(row))
        self.pending = plan.missing()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, to restore it; here nothing is restored but from the file."""
        return {}

    def start(self, trial_id: str) -> dict[str, Any] | None:
        """What the next trial tries; None where it must wait for others."""
        slot = self.pending[0]
        if not self.plan.ready(slot):
            return None
        proposal = self.plan.proposal(slot)
        self.pending.pop(0)
        self.running[trial_id] = (slot, proposal, [])
        return proposal

    def scored(self, trial_id: str, place: int, score: float) -> bool:
        """Note the `place`-th score of a trial, once more where its process was lost; whether the trial goes on."""
        slot, _, scores = self.running[trial_id]
        scores[place:] = [score]
        return self.plan.goes_on(slot, scores)

    def over(self, trial_id: str, error: str | None = None) -> None:
        """Keep what came of a trial."""
        slot, proposal, scores = self.running.pop(trial_id)
        trial = self.plan.over(slot, proposal, scores, error)
        append_rows(self.path, [trial.row()])
        self.plan.record(trial)
        self.report(trial)

    def drop(self, trial_id: str) -> None:
        """Forget a trial that was asked to stop: it is done again when the plan goes on."""
        self.running.pop(trial_id)
