"""What one arm gains over another on the same noises, with intervals: is a step of a recipe worth it?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redif_ray.evaluation.bootstrap import difference
from redif_ray.evaluation.judge import Judge, Seen

Change = dict[str, float]


def changes(
    judge: Judge, first: Seen, second: Seen, terms: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *, resamples: int, seed: int,
) -> dict[str, Change]:
    """`first` minus `second`, n images each of the same noises: a `Change` of "frechet" and of each term.

    terms: per-image values [n] of each arm by name, compared in the mean. Intervals are 95 % paired bootstrap.
    """
    def entry(values: tuple[float, float, float]) -> Change:
        return dict(zip(("change", "low", "high"), values, strict=True))

    found = {"frechet": entry(difference(
        judge.frechet, [first.features], [second.features], resamples=resamples, seed=seed))}
    for name, (mine, other) in terms.items():
        found[name] = entry(difference(_mean, [mine], [other], resamples=resamples, seed=seed))
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
