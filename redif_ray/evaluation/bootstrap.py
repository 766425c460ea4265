"""Bootstrap intervals (Efron & Tibshirani 1993, chapters 10 and 13), resampled by the noise recipe.

Sampling with replacement inflates a Fréchet distance about as much as sampling from the distribution did: replicates
lie around the estimate plus its bias. The percentiles are therefore shifted until the replicates' mean is the estimate.
The interval is then one for the expected distance *at this n*, by which arms are compared. The percentiles of an
unbiased statistic do not shift.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.features import Draw
from redif_ray.types import Condition, told

LEVEL = 0.95
Statistic = Callable[..., float]


def captions_of(conditions: Sequence[Condition]) -> list[str] | None:
    """Return the samples' captions, the labels of their clusters, or None if any condition is not a caption.

    Captions are drawn from a larger population, so they are resampled. Classes are the whole population, so they are
    held fixed.
    """
    captions = [condition for condition in map(told, conditions) if isinstance(condition, str)]
    return captions if captions and len(captions) == len(conditions) else None


def interval(
    statistic: Statistic,
    arrays: Sequence[np.ndarray],
    *,
    resamples: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Return (low, high), the central 95 % interval of `statistic(*arrays)`.

    arrays: each [n, ...]; every resample takes the same rows of all arrays.
    resamples: number of resamples, at least 40, so that a 2.5 % tail holds one.
    clusters: labels [n], one per row. Rows that share a label are drawn together, because they are alike (Davison &
        Hinkley 1997, section 3.8). None: each row is drawn by itself.
    Data that the statistic closes over, such as the reference set, is held fixed. Raises ValueError for arrays of
    different lengths, fewer than 40 resamples or a statistic that is not finite.
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
    """List the row indices of each label, int64, in the order of the labels' first rows."""
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return [np.array(indices, dtype=np.int64) for indices in rows.values()]


def difference(
    statistic: Statistic,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    resamples: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """Return (estimate, low, high) of `statistic(*first) - statistic(*second)` for two arms on the same noises.

    first, second: arrays [n, ...] of each arm. Row i of one arm belongs to row i of the other, so every resample takes
        the same rows of both and their common variation cancels. Other arguments and errors: see `interval`.
    """

    def gap(*arrays: np.ndarray) -> float:
        return statistic(*arrays[: len(first)]) - statistic(*arrays[len(first) :])

    both = [*first, *second]
    return (gap(*both), *interval(gap, both, resamples=resamples, seed=seed, clusters=clusters))
