"""Bootstrap intervals (Efron & Tibshirani 1993, chapters 10 and 13), resampled by the noise recipe.

Sampling with replacement inflates a Fréchet distance about as much as sampling from the law did: replicates lie around
the estimate plus its bias. The percentiles are therefore moved until the replicates' mean is the estimate: an interval
for the expected distance *at this n*, which is what arms are compared by. For an unbiased statistic nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.features import Draw

LEVEL = 0.95
Statistic = Callable[..., float]


def captions_of(conditions: Sequence[object]) -> list[str] | None:
    """Return the captions of samples, by which they form clusters; None for other conditions.

    Captions are drawn from many more; classes are all there are, and are held fixed.
    """
    captions = [condition for condition in conditions if isinstance(condition, str)]
    return captions if captions and len(captions) == len(conditions) else None


def interval(
    statistic: Statistic,
    arrays: Sequence[np.ndarray],
    *,
    resamples: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """The central 95 % interval of `statistic(*arrays)`, whose arrays [n, ...] are resampled by common rows.

    clusters: a label [n] a row; rows that share one are drawn together, because they are alike (Davison & Hinkley 1997,
        section 3.8). None: each row is drawn by itself.
    Anything the statistic closes over (the reference set) is held fixed. Raises ValueError for arrays of different
    lengths, fewer than 40 resamples (a 2.5 % tail needs one) or a statistic that is not finite.
    """
    lengths = {len(array) for array in arrays} | ({len(clusters)} if clusters is not None else set())
    if len(lengths) != 1 or resamples < 40:
        raise ValueError(f"arrays of lengths {sorted(lengths)}, resamples={resamples}; expected one length, 40 or more")
    members = _members(range(lengths.pop()) if clusters is None else clusters)
    n, replicates = len(members), np.empty(resamples)
    for i in range(resamples):
        drawn = (noise.uniform(n, Stream.RESAMPLE, seed=seed, round=Draw.BOOTSTRAP, step=i) * n).astype(np.int64)
        rows = np.concatenate([members[j] for j in drawn])
        replicates[i] = statistic(*(array[rows] for array in arrays))
    estimate = statistic(*arrays)
    if not np.isfinite([estimate, *replicates]).all():
        raise ValueError(f"the statistic is {estimate}, or not finite in a resample; expected finite numbers")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail]) + estimate - replicates.mean()
    return float(low), float(high)


def _members(labels: Iterable[Hashable]) -> list[np.ndarray]:
    """List the rows of each label, int64, in the order of the labels' first rows."""
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return [np.array(found, dtype=np.int64) for found in rows.values()]


def difference(
    statistic: Statistic,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    resamples: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """(estimate, low, high) of `statistic(*first) - statistic(*second)` for two arms on the same noises.

    Row i of both arms belongs together, so both are resampled by the same rows: what they share cancels.
    """

    def gap(*arrays: np.ndarray) -> float:
        return statistic(*arrays[: len(first)]) - statistic(*arrays[len(first) :])

    both = [*first, *second]
    return (gap(*both), *interval(gap, both, resamples=resamples, seed=seed, clusters=clusters))
