"""How others sample a student: a scheduler of diffusers set to its levels, and Python that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redif_ray.diffusion.schedules import Schedule


@dataclass(frozen=True, slots=True)
class Recipe:
    """scheduler: as it is saved; sigmas: the levels [N + 1] in its units; code: the card's Python, 15 lines at most;
    needs: a sentence that says which packages it takes; sampler: the file that the code imports as `sample`, if any.
    """

    scheduler: Any
    sigmas: list[float]
    code: str
    needs: str
    sampler: Path | None = None


def timesteps(schedule: Schedule) -> list[float]:
    """Of the levels, whole numbers as such."""
    return _short(schedule.times.levels)


def network_timesteps(schedule: Schedule) -> list[float] | None:
    """Those that the network is called with in place of the levels'; None where they are the same."""
    return None if schedule.times.network_timesteps is None else _short(schedule.times.network_timesteps)


def _short(times: Sequence[float]) -> list[float]:
    return [int(t) if t == int(t) else t for t in times]
