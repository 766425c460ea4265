"""The gain of one arm over another on the same noises, with intervals, to judge a step of a recipe."""

from __future__ import annotations

from typing import Any

import numpy as np

from redif_ray.evaluation.bootstrap import captions_of, difference
from redif_ray.evaluation.judge import Judge
from redif_ray.types import Seen

Change = dict[str, float]


def changes(judge: Judge, first: Seen, second: Seen, *, resamples: int, seed: int) -> dict[str, Change]:
    """Return {metric: {"change", "low", "high"}}, `first` minus `second`, for "frechet" and each reward term's mean.

    first, second: measurements of n images each, of the same noises and conditions. The 95 % paired bootstrap resamples
    captions with all their noises if the conditions are captions, else single noises.
    """
    draws: dict[str, Any] = {"resamples": resamples, "seed": seed, "clusters": captions_of(first.conditions)}

    def entry(values: tuple[float, float, float]) -> Change:
        return dict(zip(("change", "low", "high"), values, strict=True))

    result = {"frechet": entry(difference(judge.frechet, [first.judged], [second.judged], **draws))}
    for name, ours in first.terms.items():
        result[name] = entry(difference(_mean, [ours], [second.terms[name]], **draws))
    return result


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
