"""The record that the parts of a sweep share."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from redif_ray.config import Config
from redif_ray.interrupt import StopRequest
from redif_ray.runs.folder import RunFolder
from redif_ray.trials.records import Records


@dataclass(slots=True)
class Job:
    """The objects that the parts of a sweep share. recipe: configuration of the sweep's runs before their settings."""

    config: Config
    recipe: Config
    folder: RunFolder
    records: Records
    stop: StopRequest
    console: Console
