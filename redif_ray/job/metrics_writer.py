"""MetricsWriter: metrics.jsonl and MLflow, one line a round, written once however often a round is replayed."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redif_ray.errors import UserError
from redif_ray.faults import restarted
from redif_ray.runs.jsonl import append_rows, read_rows
from redif_ray.runs.timeline import SPANS, Span

if TYPE_CHECKING:  # a run that is not tracked does without MLflow, which takes seconds to import
    from redif_ray.tracking import Tracker

log = logging.getLogger(__name__)
TIMELINE_BYTES = 50 * 2**20  # some 400,000 spans; a browser opens no more
AGAIN_SECONDS = 10.0  # after which a store that did not answer at the start is asked again


class MetricsWriter:
    """The only process of a running job that talks to MLflow."""

    def __init__(self, folder: str, uri: str | None, experiment: str, run_name: str, run_id: str | None) -> None:
        self.path, self.losses = Path(folder) / "metrics.jsonl", Path(folder) / "lost.jsonl"
        self.timeline = Path(folder) / SPANS
        self.rows = read_rows(self.path)
        self.written = len(self.rows)  # of `rows`: what the disk did not take waits for the next
        self.named = (uri, experiment, run_name, run_id) if uri else None
        self.tracker: Tracker | None = None
        self.asked = -math.inf
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's 7 take 4 minutes; rows are kept here
        self._store()
        if restarted():
            self.lost("metrics writer")

    def ready(self) -> str:
        return "metrics"

    def log(self, row: dict[str, Any]) -> None:
        """Append the row of round `row["round"]`; a round that is already there is left as it is."""
        if any(row["round"] == known["round"] for known in self.rows):
            return
        self.rows.append(row)
        try:
            self._write()
        except UserError as error:
            log.warning("%s; what it lacks is kept in memory", error)
        if (tracker := self._store()) is not None:
            self._track(tracker, row)
            tracker.watch_machine()

    def _write(self) -> None:
        if len(self.rows) > self.written:
            append_rows(self.path, self.rows[self.written :])
            self.written = len(self.rows)

    def _store(self, again: float = AGAIN_SECONDS) -> Tracker | None:
        """The MLflow run, once its store has answered: that is asked every `again` seconds, then told what it lacks."""
        if self.tracker is None and self.named and time.monotonic() - self.asked >= again:
            from redif_ray.tracking import Tracker, TrackingError

            self.asked = time.monotonic()
            try:
                self.tracker = Tracker(*self.named)
            except TrackingError as error:
                log.warning("%s. It is asked again; metrics are kept", error)
            else:
                for row in self.rows:  # the tracker leaves out what the store has
                    self._track(self.tracker, row)
                self.tracker.watch_machine()
        return self.tracker

    def _track(self, tracker: Tracker, row: dict[str, Any]) -> None:
        tracker.metrics({k: v for k, v in row.items() if isinstance(v, int | float)}, step=row["round"])

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """A picture for the run's page; a store that does not take it costs the picture, not the run."""
        if self.tracker:
            try:
                self.tracker.image(key, image, step)
            except Exception as error:  # MLflow raises its own, SQLAlchemy's and requests' errors here
                log.warning("MLflow did not take the image %s (%s)", key, type(error).__name__)

    def latest(self, after: int) -> list[dict[str, Any]]:
        """Rows of rounds above `after`."""
        return [row for row in self.rows[-200:] if row["round"] > after]

    def lost(self, what: str) -> None:
        """Note that a part of the run was lost, for its report; a full disk costs the note."""
        try:
            append_rows(self.losses, [{"time": time.time(), "lost": what}])
        except UserError as error:
            log.warning("the loss of a %s is not noted: %s", what, error)

    def all_lost(self) -> dict[str, int]:
        """How often each part was lost, since the run began."""
        return dict(Counter(row["lost"] for row in read_rows(self.losses)))

    def spans(self, rows: list[Span]) -> None:
        """Keep a part of the timeline. What the disk does not take, or nobody could open, is left out."""
        try:
            if not self.timeline.exists() or self.timeline.stat().st_size < TIMELINE_BYTES:
                append_rows(self.timeline, rows)
        except UserError as error:
            log.warning("the timeline has a gap: %s", error)

    def flush(self) -> bool:
        """Write what waits; whether the store took its part. Raises UserError where the disk does not."""
        self._write()
        tracker = self._store(again=0)
        return tracker.flush() if tracker else self.named is None
