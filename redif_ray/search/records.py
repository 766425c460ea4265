"""What a search keeps in its folder and tells MLflow while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redif_ray.config import Config
from redif_ray.pipeline.run_folder import RunFolder
from redif_ray.search.course import Trial
from redif_ray.tracking import Tracker, flatten, tracking_uri


class Records:
    """The state of the folder, and an MLflow run with one nested run a trial, written by a thread of its own."""

    def __init__(self, folder: RunFolder, tracker: Tracker | None) -> None:
        self.folder, self.tracker = folder, tracker
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    @classmethod
    @contextmanager
    def open(cls, config: Config, folder: RunFolder) -> Iterator[Records]:
        """Records for the length of a block, whose end decides the status of the MLflow run."""
        uri, tracker = tracking_uri(config), None
        if uri is not None:
            known = folder.state.get("mlflow_run_id")
            tracker = Tracker(uri, config.tracking.experiment, config.run.name, known)
            if known is None:
                folder.update_state(mlflow_run_id=tracker.run_id)
                tracker.params(flatten(config))
        records = cls(folder, tracker)
        status = "KILLED"
        try:
            yield records
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            records.thread.shutdown()
            if tracker is not None:
                tracker.finish(status)

    def trial(self, trial: Trial) -> None:
        if self.tracker is None:
            return
        name = f"N={trial.steps} {trial.stage} {trial.number}"
        params = {"steps": trial.steps, "stage": trial.stage, **trial.params, "timesteps": trial.timesteps}
        if trial.error is not None:
            params["error"] = trial.error
        metrics = {f"distance/{i}": score for i, score in enumerate(trial.scores)}
        if trial.scores:
            metrics["distance"] = trial.scores[-1]
        status = "FINISHED" if trial.error is None else "FAILED"
        self.thread.submit(self.tracker.child, name, params, metrics, status)

    def summary(self, values: dict[str, float], files: list[Path]) -> None:
        """The search's own numbers, and its files as artifacts."""
        if self.tracker is not None:
            self.tracker.summary(values)
            for path in files:
                self.tracker.artifact(path)

    @contextmanager
    def timed(self, engine: str) -> Iterator[None]:
        """Add the seconds of a block to those that an engine has taken, over restarts."""
        began = time.monotonic()
        try:
            yield
        finally:
            taken = self.seconds()
            taken[engine] = taken.get(engine, 0.0) + time.monotonic() - began
            self.folder.update_state(seconds=taken)

    def seconds(self) -> dict[str, float]:
        return dict(self.folder.state.get("seconds", {}))

    def descent(self, steps: int) -> tuple[float, tuple[float, ...]] | None:
        """(score on the bank, timesteps) of the gradient's schedule, where a search that was cut short had found it."""
        known: dict[str, Any] = self.folder.state.get("descents", {})
        if str(steps) not in known:
            return None
        score, timesteps = known[str(steps)]
        return score, tuple(timesteps)

    def keep_descent(self, steps: int, found: tuple[float, tuple[float, ...]]) -> None:
        self.folder.update_state(descents={**self.folder.state.get("descents", {}), str(steps): found})
