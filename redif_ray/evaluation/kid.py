"""Kernel distance (KID): unbiased squared MMD with a cubic kernel (Binkowski et al., arXiv 1801.01401).

All pairs of rows are used, in blocks, instead of averages over random subsets: the estimate varies less, and its
standard error is known. (The spread over overlapping subsets, often printed beside KID, is several times that error.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from redif_ray.evaluation.features import as_features, as_pair

BLOCK = 1000  # rows of the kernel matrix in memory at once


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return k(x, y) = (x . y / d + 1)^3, [m, n], for x [m, d] and y [n, d]."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def kid_to(reference: np.ndarray) -> Callable[[np.ndarray], tuple[float, float]]:
    """Return the function from features [m, d] to (MMD^2, its standard error) against `reference` [n, d].

    MMD^2 = mean over i != j of k(x_i, x_j) + the same for y - 2 mean of k(x_i, y_j): unbiased, so it may be negative.
    The standard error is that of the U-statistic's Hoeffding projections (Serfling 1980, section 5.3): each x_i adds
    2 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), each y_j likewise, and a mean of n such terms has their variance / n.
    The error is exact to first order for different distributions. It is too large for equal ones, where the first order
    vanishes. The sums within the reference are computed once.
    """
    reference = as_features(reference, "reference")
    within2 = _within(reference)

    def distance(features: np.ndarray) -> tuple[float, float]:
        x, y = as_pair(features, reference)
        within1, (across1, across2) = _within(x), _across(x, y)
        value = within1.mean() + within2.mean() - 2 * across1.mean()
        projection1, projection2 = 2 * (within1 - across1), 2 * (within2 - across2)
        error = np.sqrt(projection1.var(ddof=1) / len(x) + projection2.var(ddof=1) / len(y))
        return float(value), float(error)

    return distance


def _within(x: np.ndarray) -> np.ndarray:
    """Return each row's mean kernel value with the other rows, [m]."""
    sums = [kernel(x[i : i + BLOCK], x).sum(1) for i in range(0, len(x), BLOCK)]
    itself = (np.square(x).sum(1) / x.shape[1] + 1) ** 3
    return (np.concatenate(sums) - itself) / (len(x) - 1)


def _across(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's mean kernel value with the rows of the other set, [m] for x and [n] for y."""
    rows, columns = [], np.zeros(len(y))
    for i in range(0, len(x), BLOCK):
        block = kernel(x[i : i + BLOCK], y)
        rows.append(block.mean(1))
        columns += block.sum(0)
    return np.concatenate(rows), columns / len(x)
