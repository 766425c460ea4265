"""The records of a search or a sweep: the state in its folder, and its MLflow run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from redif_ray.config import Config
from redif_ray.masking import masked
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.mlflow_page import charts
from redif_ray.tracking import Tracker, flatten

log = logging.getLogger(__name__)


class Records:
    """The state of the folder and the MLflow run that trials are nested in. thread: writes trials to MLflow."""

    def __init__(self, folder: RunFolder, tracker: Tracker | None) -> None:
        self.folder, self.tracker = folder, tracker
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    @classmethod
    @contextmanager
    def open(cls, config: Config, folder: RunFolder) -> Iterator[Self]:
        """Open the records for the length of a block. The end of the block decides the status of the MLflow run."""
        uri, tracker = config.tracking_uri, None
        if uri is not None:
            run_id = folder.state.get("mlflow_run_id")
            tracker = Tracker(uri, config.experiment, config.run.name, run_id)
            if run_id is None:
                folder.update_state(
                    mlflow_run_id=tracker.run_id, mlflow_page=charts(tracker.experiment, tracker.run_id)
                )
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

    def write(self, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call to MLflow in the thread. A failure is logged and ends nothing: the folder has each result."""

        def written() -> None:
            try:
                call(*arguments)
            except Exception as error:
                log.warning("MLflow lacks %s: %s: %s", arguments[0], type(error).__name__, masked(str(error)))

        self.thread.submit(written)

    def summary(self, values: dict[str, float], files: list[Path]) -> None:
        """Log the job's own numbers, and its files as artifacts."""
        if self.tracker is not None:
            self.tracker.summary(values)
            for path in files:
                self.tracker.artifact(path)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds of a block to the total of `what`, which is kept over restarts."""
        began = time.monotonic()
        try:
            yield
        finally:
            taken = self.seconds()
            taken[what] = taken.get(what, 0.0) + time.monotonic() - began
            self.folder.update_state(seconds=taken)

    def seconds(self) -> dict[str, float]:
        return dict(self.folder.state.get("seconds", {}))
