"""Precision and recall (Kynkäänniemi et al., arXiv 1904.06991), density and coverage (Naeem et al., arXiv 2002.09797).

Precision and density fall with artefacts, recall and coverage with lost modes. Not even samples of identical
distributions reach 1, so print `ceiling` beside the values.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from redif_ray.config import NEIGHBOURS
from redif_ray.evaluation.features import Draw, as_features, as_pair, shuffled

K = NEIGHBOURS
LEAST = K + 1  # images in each set that is compared
BLOCK = 500  # rows of the distance matrix in memory at once


def prdc(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return {"precision", "recall", "density", "coverage"} of features [n, d] against a reference [n, d], at k = 5.

    A ball around each sample reaches to its k-th nearest neighbour in its own set. precision: share of features within
    a reference ball; recall: share of the reference within a feature's ball; density: reference balls around a feature,
    divided by k; coverage: share of reference balls that hold a feature. Euclidean distances, strict inequalities.
    Raises ValueError for sets of different sizes (the values depend on n) and for k or fewer rows.
    """
    x, y = as_pair(features, reference)
    if len(x) != len(y) or len(x) <= K:
        raise ValueError(f"{len(x)} features and {len(y)} reference rows; expected equal counts above k={K}")
    reach_x, reach_y = _radii(x), _radii(y)
    in_balls, recalled, nearest = np.empty(len(x)), np.zeros(len(y), bool), np.full(len(y), np.inf)
    for i in range(0, len(x), BLOCK):
        rows = slice(i, i + BLOCK)
        distance = cdist(x[rows], y)
        in_balls[rows] = (distance < reach_y).sum(1)
        recalled |= (distance < reach_x[rows, None]).any(0)
        nearest = np.minimum(nearest, distance.min(0))
    return {
        "precision": float((in_balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(in_balls.mean() / K),
        "coverage": float((nearest < reach_y).mean()),
    }


def ceiling(reference: np.ndarray, n: int, seed: int) -> dict[str, float]:
    """Return the `prdc` of two disjoint random sets of `n` reference rows: the score of a perfect generator."""
    reference = as_features(reference, "reference")
    half = len(reference) // 2
    if not K < n <= half:
        raise ValueError(f"n={n} of {len(reference)} reference rows; expected {LEAST} to {half} for two disjoint sets")
    order = shuffled(len(reference), Draw.CEILING, seed)
    return prdc(reference[order[:n]], reference[order[n : 2 * n]])


def _radii(x: np.ndarray) -> np.ndarray:
    """Return each row's distance to its k-th nearest other row, [n]."""
    radii = np.empty(len(x))
    for i in range(0, len(x), BLOCK):
        distance = cdist(x[i : i + BLOCK], x)
        distance[np.arange(len(distance)), np.arange(i, i + len(distance))] = np.inf
        radii[i : i + BLOCK] = np.partition(distance, K - 1, axis=1)[:, K - 1]
    return radii
