"""Bootstrap intervals (Efron & Tibshirani 1993, chapters 10 and 13), resampled by the noise recipe.

Sampling with replacement inflates a Fréchet distance about as much as sampling from the law did: replicates lie around
the estimate plus its bias. The percentiles are therefore moved until the replicates' mean is the estimate: an interval
for the expected distance *at this n*, which is what arms are compared by. For an unbiased statistic nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.features import Draw

LEVEL = 0.95
Statistic = Callable[..., float]


def interval(statistic: Statistic, arrays: Sequence[np.ndarray], *, resamples: int, seed: int) -> tuple[float, float]:
    """The central 95 % interval of `statistic(*arrays)`, whose arrays [n, ...] are resampled by common rows.

    Anything the statistic closes over (the reference set) is held fixed. Raises ValueError for arrays of different
    lengths, fewer than 40 resamples (a 2.5 % tail needs one) or a statistic that is not finite.
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or resamples < 40:
        raise ValueError(f"arrays of lengths {sorted(lengths)}, resamples={resamples}; expected one length, 40 or more")
    n = lengths.pop()
    replicates = np.empty(resamples)
    for i in range(resamples):
        rows = (noise.uniform(n, Stream.RESAMPLE, seed=seed, round=Draw.BOOTSTRAP, step=i) * n).astype(np.int64)
        replicates[i] = statistic(*(array[rows] for array in arrays))
    estimate = statistic(*arrays)
    if not np.isfinite([estimate, *replicates]).all():
        raise ValueError(f"the statistic is {estimate}, or not finite in a resample; expected finite numbers")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail]) + estimate - replicates.mean()
    return float(low), float(high)


def difference(
    statistic: Statistic, first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, resamples: int, seed: int
) -> tuple[float, float, float]:
    """(estimate, low, high) of `statistic(*first) - statistic(*second)` for two arms on the same noises.

    Row i of both arms belongs together, so both are resampled by the same rows: what they share cancels.
    """
    def gap(*arrays: np.ndarray) -> float:
        return statistic(*arrays[: len(first)]) - statistic(*arrays[len(first) :])

    both = [*first, *second]
    return (gap(*both), *interval(gap, both, resamples=resamples, seed=seed))
