"""The recipe for sampling an exported student: a scheduler of diffusers set to its levels, and Python that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redif_ray.diffusion.schedules import Schedule


@dataclass(frozen=True, slots=True)
class Recipe:
    """The scheduler and the code that sample a student.

    scheduler: the scheduler to save. sigmas: the levels [N + 1] in the scheduler's units. code: the card's Python, at
    most 15 lines. needs: a sentence on the packages that the code needs. sampler: the file that the code imports as
    `sample`; None: no file. gpu_dtype: name of torch's dtype in which a GPU computes; a CPU computes in float32.
    call: arguments with which a text-to-image pipeline is called, beside captions and noise.
    """

    scheduler: Any
    sigmas: list[float]
    code: str
    needs: str
    sampler: Path | None = None
    gpu_dtype: str = "float32"
    call: dict[str, Any] = field(default_factory=dict)


def timesteps(schedule: Schedule) -> list[float]:
    """Return the timesteps of the levels, [N], whole numbers as int."""
    return _short(schedule.times.levels)


def network_timesteps(schedule: Schedule) -> list[float] | None:
    """Return the timesteps that the network is called with, [N]; None where they are the timesteps of the levels."""
    return None if schedule.times.network_timesteps is None else _short(schedule.times.network_timesteps)


def _short(times: Sequence[float]) -> list[float]:
    return [int(t) if t == int(t) else t for t in times]
