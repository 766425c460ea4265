"""Images of one arm beside the teacher's, as the coordinator's answer holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redif_ray.faults import Fetched
from redif_ray.types import Condition, Meta, WorkUnit

Terms = dict[str, np.ndarray]  # raw reward terms by name, one value an image


@dataclass(frozen=True, slots=True)
class Samples:
    """Images of some groups, the arm's and the teacher's, [n, C, H, W] in [0, 1]; their conditions and raw terms."""

    images: np.ndarray
    targets: np.ndarray
    conditions: list[Condition]
    terms: Terms
    metas: list[Meta]


def collect(data: Fetched) -> Samples:
    """What `Coordinator.deploy` answered."""
    scored = [score for (score,) in data.parts.values()]
    return Samples(
        images=np.concatenate([s.images for s in scored if s.images is not None]),
        targets=np.concatenate([s.targets for s in scored if s.targets is not None]),
        conditions=[c for s in scored for c in s.unit.conditions],
        terms=joined([s.terms for s in scored]),
        metas=[meta for metas in data.metas for meta in metas],
    )


def parted(values: np.ndarray, units: Sequence[WorkUnit]) -> list[np.ndarray]:
    """Values of the rows of work units, one after the other, as one array a work unit."""
    return np.split(values, np.cumsum([unit.rows for unit in units])[:-1])


def joined(parts: Sequence[Terms]) -> Terms:
    """Terms of work units, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
