"""The gain of one arm over another on the same noises, with intervals, to judge a step of a recipe."""

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
    """Return {metric: {"change", "low", "high"}}, `first` minus `second`, for "frechet" and each term.

    first, second: n images each, of the same noises.
    terms: {name: (values [n] of first, values [n] of second)}, of which the means are compared.
    conditions: one per image. The 95 % paired bootstrap resamples captions with all their noises if the conditions are
        captions, else single noises.
    """
    draws: dict[str, Any] = {"resamples": resamples, "seed": seed, "clusters": captions_of(conditions)}

    def entry(values: tuple[float, float, float]) -> Change:
        return dict(zip(("change", "low", "high"), values, strict=True))

    result = {"frechet": entry(difference(judge.frechet, [first.features], [second.features], **draws))}
    for name, (ours, theirs) in terms.items():
        result[name] = entry(difference(_mean, [ours], [theirs], **draws))
    return result


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
