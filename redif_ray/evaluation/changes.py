"""What one arm gains over another on the same noises, with intervals: is a step of a recipe worth it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from redif_ray.evaluation.bootstrap import captions_of, difference
from redif_ray.evaluation.judge import Judge, Seen
from redif_ray.types import Condition

Change = dict[str, float]


def changes(
    judge: Judge,
    first: Seen,
    second: Seen,
    terms: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    resamples: int,
    seed: int,
    conditions: Sequence[Condition],
) -> dict[str, Change]:
    """`first` minus `second`, n images each of the same noises: a `Change` of "frechet" and of each term.

    terms: per-image values [n] of each arm by name, compared in the mean. Intervals are 95 % paired bootstrap, over
        noises or, where `conditions` are captions, over captions with all their noises.
    """
    draws: dict[str, Any] = {"resamples": resamples, "seed": seed, "clusters": captions_of(conditions)}

    def entry(values: tuple[float, float, float]) -> Change:
        return dict(zip(("change", "low", "high"), values, strict=True))

    found = {"frechet": entry(difference(judge.frechet, [first.features], [second.features], **draws))}
    for name, (mine, other) in terms.items():
        found[name] = entry(difference(_mean, [mine], [other], **draws))
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
