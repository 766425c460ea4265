"""The journal of a plan: a file with a line for each finished trial, synced to disk, and the running trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from redif_ray.runs.jsonl import append_rows, read_rows
from redif_ray.trials.plan import Plan


class Journal:
    """The journal of `plan` in the file `path`, whose trials are restored. report: called with each finished trial."""

    def __init__(self, plan: Plan[Any, Any], path: Path, report: Callable[[Any], None]) -> None:
        self.plan, self.path, self.report = plan, path, report
        self.running: dict[str, tuple[Any, dict[str, Any], list[float]]] = {}
        for row in read_rows(path):
            plan.record(plan.restored(row))
        self.pending = plan.missing()

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles its search algorithm to restore it, but a journal is restored from its file."""
        return {}

    def start(self, trial_id: str) -> dict[str, Any] | None:
        """Return the proposal of the next trial, or None where the trial must wait for others."""
        slot = self.pending[0]
        if not self.plan.ready(slot):
            return None
        proposal = self.plan.proposal(slot)
        self.pending.pop(0)
        self.running[trial_id] = (slot, proposal, [])
        return proposal

    def scored(self, trial_id: str, place: int, score: float) -> bool:
        """Note score number `place`, from 0, of a trial and return whether the trial continues.

        A trial whose process was lost reports its scores again; so later scores than `place` are dropped.
        """
        slot, _, scores = self.running[trial_id]
        scores[place:] = [score]
        return self.plan.goes_on(slot, scores)

    def over(self, trial_id: str, error: str | None = None) -> None:
        """Append a finished trial to the file. error: why the trial failed; None: success."""
        slot, proposal, scores = self.running.pop(trial_id)
        trial = self.plan.over(slot, proposal, scores, error)
        append_rows(self.path, [trial.row()])
        self.plan.record(trial)
        self.report(trial)

    def drop(self, trial_id: str) -> None:
        """Forget a trial that was asked to stop; the trial runs again when the plan is resumed."""
        self.running.pop(trial_id)
