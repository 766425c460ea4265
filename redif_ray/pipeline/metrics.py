"""MetricsWriter: metrics.jsonl and MLflow, one line a round, written once however often a round is replayed."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from redif_ray.pipeline.faults import restarted
from redif_ray.tracking import Tracker


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; a last line that was cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class MetricsWriter:
    """The only process of a running job that talks to MLflow."""

    def __init__(self, folder: str, uri: str | None, experiment: str, run_name: str, run_id: str | None) -> None:
        self.path, self.losses = Path(folder) / "metrics.jsonl", Path(folder) / "lost.jsonl"
        self.rows = read_rows(self.path)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.tracker = Tracker(uri, experiment, run_name, run_id) if uri else None
        for row in self.rows:  # those that a kill kept from the store; it leaves out what it has
            self._track(row)
        if restarted():
            self.lost("metrics writer")

    def ready(self) -> str:
        return "metrics"

    def log(self, row: dict[str, Any]) -> None:
        """Append the row of round `row["round"]`; a round that is already there is left as it is."""
        if any(row["round"] == known["round"] for known in self.rows):
            return
        self.rows.append(row)
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        self._track(row)

    def _track(self, row: dict[str, Any]) -> None:
        if self.tracker:
            self.tracker.metrics({k: v for k, v in row.items() if isinstance(v, int | float)}, step=row["round"])

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """A picture for the run's page; a store that does not take it costs the picture, not the run."""
        if self.tracker:
            try:
                self.tracker.image(key, image, step)
            except Exception as error:  # MLflow raises its own, SQLAlchemy's and requests' errors here
                logging.getLogger(__name__).warning("MLflow did not take the image %s (%s)", key, type(error).__name__)

    def latest(self, after: int) -> list[dict[str, Any]]:
        """Rows of rounds above `after`."""
        return [row for row in self.rows[-200:] if row["round"] > after]

    def lost(self, what: str) -> None:
        """Note that a part of the run was lost, for its report."""
        with self.losses.open("a") as stream:
            stream.write(json.dumps({"time": time.time(), "lost": what}) + "\n")

    def all_lost(self) -> dict[str, int]:
        """How often each part was lost, since the run began."""
        return dict(Counter(row["lost"] for row in read_rows(self.losses)))

    def flush(self) -> bool:
        return self.tracker.flush() if self.tracker else True
