"""Images of one arm of an evaluation beside the teacher's, out of the coordinator's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redif_ray.faults import Fetched
from redif_ray.types import Condition, Meta, WorkUnit

Terms = dict[str, np.ndarray]  # raw reward terms by name, one value for each image


@dataclass(frozen=True, slots=True)
class Samples:
    """One image for each group: the arm's (`images`) and the teacher's (`targets`), [n, C, H, W] float32 in [0, 1].

    conditions: n of them. terms: raw reward terms of the arm's images, [n] each. metas: the work that this took.
    """

    images: np.ndarray
    targets: np.ndarray
    conditions: list[Condition]
    terms: Terms
    metas: list[Meta]


def collect(data: Fetched) -> Samples:
    """Return the samples in an answer of `Coordinator.deploy`."""
    scored = [score for (score,) in data.parts.values()]
    return Samples(
        images=np.concatenate([s.images for s in scored if s.images is not None]),
        targets=np.concatenate([s.targets for s in scored if s.targets is not None]),
        conditions=[c for s in scored for c in s.unit.conditions],
        terms=joined([s.terms for s in scored]),
        metas=[meta for metas in data.metas for meta in metas],
    )


def parted(values: np.ndarray, units: Sequence[WorkUnit]) -> list[np.ndarray]:
    """Split values of the rows of successive work units into one array for each unit."""
    return np.split(values, np.cumsum([unit.rows for unit in units])[:-1])


def joined(parts: Sequence[Terms]) -> Terms:
    """Concatenate the reward terms of successive work units."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
