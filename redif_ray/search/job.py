"""The record that the parts of a search share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from redif_ray.config import Config
from redif_ray.interrupt import StopRequest
from redif_ray.job.session import get
from redif_ray.models.protocol import DiffusionModel
from redif_ray.runs.folder import RunFolder
from redif_ray.search.records import Records


@dataclass(slots=True)
class Job:
    """The state that the parts of a search share, all of it rebuilt from the configuration and the run folder."""

    config: Config
    folder: RunFolder
    model: DiffusionModel
    evaluator: Any
    stop: StopRequest
    console: Console
    records: Records
    weights: dict[str, float] = field(default_factory=dict)  # by name, the weight of each reward term in the distance

    def get(self, reference: Any) -> Any:
        """Wait for `reference` as `job.session.get` does. Raises Interrupted if a stop of the search is requested."""
        return get(reference, self.stop)
