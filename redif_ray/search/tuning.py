"""The trials of a `Course` through Ray Tune: it starts them, bounds them, sees them fail; the course decides.

A trial is a class that is reused: a process of its own would take longer than its network calls. Each finished trial is
a line of `trials.jsonl`, synced to disk: a search that was cut short takes up all it knows and runs the rest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose verbosity 0 is not silent
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the job has its own
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune import Trainable
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from redif_ray.pipeline.causes import cause
from redif_ray.pipeline.interrupt import StopRequest
from redif_ray.pipeline.metrics import read_rows
from redif_ray.search.course import Course, Slot, Trial

TRIAL_CPUS = 0.001  # a trial only waits for workers; Tune places none that asks for nothing
TRIALS = "trials.jsonl"


class Evaluation(Trainable):
    """A trial: each step scores the schedule on one rung more of the bank."""

    def setup(self, config: dict[str, Any], evaluator: Any, rungs: tuple[int, ...], weights: dict[str, float]) -> None:
        self.evaluator, self.rungs, self.weights = evaluator, rungs, weights
        self.timesteps = config["timesteps"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.timesteps = new_config["timesteps"]
        return True

    def step(self) -> dict[str, Any]:
        rung = self.rungs[self.iteration]
        try:
            score = ray.get(self.evaluator.scores.remote(self.timesteps, rung, self.weights))
        except RayTaskError as error:  # of this schedule; Tune would tell of it only after the trial is forgotten
            first = cause(error)
            return {"score": math.nan, "error": f"{type(first).__name__}: {first}"}
        return {"score": score}  # never that it is done: of a last result Tune tells no scheduler


class Journal:
    """The trials that are over, kept in `path`, and those that run."""

    def __init__(self, course: Course, path: Path, report: Callable[[Trial], None]) -> None:
        self.course, self.path, self.report = course, path, report
        self.running: dict[str, tuple[Slot, dict[str, float | str], list[float], list[float]]] = {}
        rows = read_rows(path)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # without a line that was cut short
        for row in rows:
            course.record(Trial(**row))
        self.pending = course.missing()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, to restore it; here nothing is restored but from the file."""
        return {}

    def start(self, trial_id: str) -> list[float] | None:
        """The next trial's timesteps; None where it must wait for others."""
        slot = self.pending[0]
        if not self.course.ready(slot):
            return None
        params, schedule = self.course.proposal(slot)
        timesteps = schedule.levels.timestep[:-1].tolist()
        self.pending.pop(0)
        self.running[trial_id] = (slot, params, timesteps, [])
        return timesteps

    def scored(self, trial_id: str, score: float) -> bool:
        """Note a rung's score; whether the trial goes on."""
        slot, _, _, scores = self.running[trial_id]
        scores.append(score)
        return self.course.goes_on(slot, scores)

    def over(self, trial_id: str, error: str | None = None) -> None:
        """Keep what came of a trial."""
        slot, params, timesteps, scores = self.running.pop(trial_id)
        trial = Trial(slot.number, slot.steps, slot.stage, params, timesteps, scores, error)
        with self.path.open("a") as file:
            file.write(json.dumps(trial.row()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.course.record(trial)
        self.report(trial)


class _Proposals(Searcher):
    def __init__(self, journal: Journal, stop: StopRequest) -> None:
        super().__init__(metric="score", mode="min")
        self.journal, self.stop = journal, stop

    def suggest(self, trial_id: str) -> Any:
        if self.stop.requested or not self.journal.pending:
            return Searcher.FINISHED
        timesteps = self.journal.start(trial_id)
        return None if timesteps is None else {"timesteps": timesteps}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        lost = "the trial's process was lost; see Ray's logs" if error else None
        self.journal.over(trial_id, lost or (result or {}).get("error"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class _Cuts(FIFOScheduler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        go_on = "error" not in result and self.journal.scored(trial.trial_id, float(result["score"]))
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP


def run_trials(journal: Journal, evaluator: Any, weights: dict[str, float], stop: StopRequest) -> None:
    """Run what is missing of the course. A trial that fails is recorded with its error."""
    if not journal.pending:
        return
    course = journal.course
    trainable = tune.with_parameters(Evaluation, evaluator=evaluator, rungs=course.settings.rungs, weights=weights)
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": TRIAL_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=_Proposals(journal, stop), scheduler=_Cuts(journal), num_samples=len(journal.pending),
            max_concurrent_trials=course.settings.concurrent, reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(journal.path.parent / ".tune"), verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
