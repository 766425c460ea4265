"""The trials of a `Plan` run by Ray Tune, which starts trials, limits their number and detects failures.

The plan decides on proposals and cuts. Each step of a trial returns {"score": s}, {"error": text} or {"left": True};
the last means that the trial was asked to stop before it had a score.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output is not silent at verbosity 0
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the job handles SIGINT itself
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from redif_ray.interrupt import StopRequest
from redif_ray.trials.journal import Journal

# A trial only waits for workers, but Tune places no trial without resources; a byte of memory is free on every node.
TRIAL = {"memory": 1}
STORAGE = ".tune"  # folder of Tune's own files, in that of the search or sweep


class _Proposals(Searcher):
    def __init__(self, journal: Journal, stop: StopRequest) -> None:
        super().__init__(metric="score", mode="min")
        self.journal, self.stop = journal, stop

    def suggest(self, trial_id: str) -> Any:
        if self.stop.requested or not self.journal.pending:
            return Searcher.FINISHED
        return self.journal.start(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        if (result or {}).get("left"):
            self.journal.drop(trial_id)
            return
        lost = "the trial's process was lost; see Ray's logs" if error else None
        self.journal.over(trial_id, lost or (result or {}).get("error"))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: all state is in the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: all state is in the journal."""


class _Cuts(FIFOScheduler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if "error" in result or "left" in result:
            return TrialScheduler.STOP
        go_on = self.journal.scored(trial.trial_id, result["training_iteration"] - 1, float(result["score"]))
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP


def tidy(folder: Path) -> None:
    """Remove what only a running search or sweep needs in its folder: Tune's own storage, and a run's empty folder."""
    shutil.rmtree(folder / STORAGE, ignore_errors=True)
    with suppress(OSError):  # it holds something, or is gone
        (folder / "checkpoints").rmdir()


def run_trials(
    journal: Journal,
    trainable: Any,
    stop: StopRequest,
    *,
    resources: Any,
    concurrent: int,
    retries: int = 0,
) -> None:
    """Run the trials that the plan still lacks. A trial that fails is recorded with its error.

    A process runs several trials, one after the other.
    resources: the resources of one trial, as `tune.with_resources` takes them; concurrent: the most trials at once;
    retries: the most restarts of a trial whose process is lost.
    """
    if not journal.pending:
        return
    tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=_Proposals(journal, stop),
            scheduler=_Cuts(journal),
            num_samples=len(journal.pending),
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(journal.path.parent / STORAGE),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
