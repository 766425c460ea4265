"""How others sample a student: a scheduler of diffusers set to its levels, and Python that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redif_ray.diffusion.schedules import Schedule


@dataclass(frozen=True, slots=True)
class Recipe:
    """scheduler: as it is saved; sigmas: the levels [N + 1] in its units; code: the card's Python, 15 lines at most."""

    scheduler: Any
    sigmas: list[float]
    code: str


def timesteps(schedule: Schedule) -> list[float]:
    """What the network is told, whole numbers as such."""
    times = schedule.levels.timestep[:-1].tolist()
    return [int(t) if t == int(t) else t for t in times]
