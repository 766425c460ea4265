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


def told(schedule: Schedule) -> list[float] | None:
    """What the network is told in place of these; None where it is told these."""
    return None if schedule.times.told is None else _short(schedule.times.told)


def _short(times: Sequence[float]) -> list[float]:
    return [int(t) if t == int(t) else t for t in times]
