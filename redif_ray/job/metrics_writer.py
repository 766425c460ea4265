"""The metrics writer: one row per round to metrics.jsonl and MLflow, written once even if a round is replayed."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redif_ray.errors import UserError
from redif_ray.faults import restarted
from redif_ray.runs.jsonl import append_rows, read_rows
from redif_ray.runs.timeline import SPANS, Span

if TYPE_CHECKING:  # MLflow takes seconds to import, which a run without tracking saves
    from redif_ray.tracking import Tracker

log = logging.getLogger(__name__)
TIMELINE_BYTES = 50 * 2**20  # about 400,000 spans, the most that a browser opens
AGAIN_SECONDS = 10.0  # between attempts to reach a store that did not answer at the start


class MetricsWriter:
    """The writer of metrics, losses and the timeline, and the only process of a running job that talks to MLflow.

    folder: run folder. uri: tracking store; None: no tracking. experiment, run_name, run_id: see `Tracker`.
    variables: variables of the environment, such as MLflow's credentials, that a cluster's processes lack.
    """

    def __init__(
        self,
        folder: str,
        uri: str | None,
        experiment: str,
        run_name: str,
        run_id: str | None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        os.environ.update(variables or {})
        self.path, self.losses = Path(folder) / "metrics.jsonl", Path(folder) / "lost.jsonl"
        self.timeline = Path(folder) / SPANS
        self.awaited = Counter[str]()  # by role: losses that are noted, of workers that are not back
        self.rows = read_rows(self.path)
        self.written = len(
            self.rows
        )  # number of `rows` on disk; rows that a full disk refused are written with the next
        self.named = (uri, experiment, run_name, run_id) if uri else None
        self.tracker: Tracker | None = None
        self.asked = -math.inf
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
        )  # MLflow's default of 7 takes 4 minutes; rows are kept here anyway
        self._store()
        if restarted():
            self.lost("metrics writer")

    def ready(self) -> str:
        return "metrics"

    def log(self, row: dict[str, Any]) -> None:
        """Append the row of round `row["round"]`, unless that round already has a row."""
        if any(row["round"] == written["round"] for written in self.rows):
            return
        self.rows.append(row)
        try:
            self._write()
        except UserError as error:
            log.warning("%s; rows that are not on disk are kept in memory", error)
        if (tracker := self._store()) is not None:
            self._track(tracker, row)
            tracker.watch_machine()

    def _write(self) -> None:
        if len(self.rows) > self.written:
            append_rows(self.path, self.rows[self.written :])
            self.written = len(self.rows)

    def _store(self, again: float = AGAIN_SECONDS) -> Tracker | None:
        """Return the MLflow run, or None while its store does not answer.

        again: seconds after which the store is tried again. Once the store answers, it gets all rows so far.
        """
        if self.tracker is None and self.named and time.monotonic() - self.asked >= again:
            from redif_ray.tracking import Tracker, TrackingError

            self.asked = time.monotonic()
            try:
                self.tracker = Tracker(*self.named)
            except TrackingError as error:
                log.warning("%s. The store is asked again later; metrics are kept", error)
            else:
                for row in self.rows:  # the tracker skips rows that the store has
                    self._track(self.tracker, row)
                self.tracker.watch_machine()
        return self.tracker

    def _track(self, tracker: Tracker, row: dict[str, Any]) -> None:
        from redif_ray.tracking import charted

        tracker.metrics(charted(row), step=row["round"])

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Send an image to the MLflow run. If the store does not take it, the image is lost and the run goes on.

        image: [H, W, 3] uint8. step: round.
        """
        if self.tracker:
            try:
                self.tracker.image(key, image, step)
            except Exception as error:  # MLflow lets errors of SQLAlchemy and requests through as well
                log.warning("MLflow did not take the image %s (%s)", key, type(error).__name__)

    def latest(self, after: int) -> list[dict[str, Any]]:
        """Return the rows of rounds above `after`, among the last 200."""
        return [row for row in self.rows[-200:] if row["round"] > after]

    def lost(self, what: str) -> None:
        """Note the loss of a part of the run, such as "learner", for its report. A full disk loses only the note."""
        self.awaited[what] += 1
        try:
            append_rows(self.losses, [{"time": time.time(), "lost": what}])
        except UserError as error:
            log.warning("the loss of the %s is not noted: %s", what, error)

    def came_back(self, role: str) -> None:
        """Note the loss of a worker that has been replaced, unless it was noted before, as that of a call is."""
        if not self.awaited[role]:
            self.lost(role)
        self.awaited[role] -= 1

    def all_lost(self) -> dict[str, int]:
        """Return {part: number of its losses since the run began}."""
        return dict(Counter(row["lost"] for row in read_rows(self.losses)))

    def spans(self, rows: list[Span]) -> None:
        """Append spans to the timeline. Spans that the disk refuses or that exceed `TIMELINE_BYTES` are dropped."""
        try:
            if not self.timeline.exists() or self.timeline.stat().st_size < TIMELINE_BYTES:
                append_rows(self.timeline, rows)
        except UserError as error:
            log.warning("the timeline has a gap: %s", error)

    def flush(self) -> bool:
        """Write all pending rows and tell whether the store took its own. Raises UserError if the disk refuses them."""
        self._write()
        tracker = self._store(again=0)
        return tracker.flush() if tracker else self.named is None
