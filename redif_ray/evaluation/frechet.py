"""Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500), squared as FID reports it.

The distance is called FID only with Inception-v3's features; this module takes any. The estimate is biased upwards: two
samples of one distribution are apart by a floor that grows with dimensions / samples. Compare distances only at equal
n, and print `frechet_floor` beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from redif_ray.evaluation.features import Draw, as_features, as_pair, shuffled


def frechet_to(reference: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the function from features [m, d] to their distance to `reference` [n, d].

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2), all in float64. The matrix in the outer root is
    symmetric and positive semi-definite, so the trace of its root is the sum of the roots of its eigenvalues, even if a
    covariance is singular. The root of the reference's covariance C2 is computed once.
    """
    reference = as_features(reference, "reference")
    mean2, cov2 = reference.mean(0), _covariance(reference)
    values, vectors = np.linalg.eigh(cov2)
    root2 = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def distance(features: np.ndarray) -> float:
        x, _ = as_pair(features, reference[:2])
        mean1, cov1 = x.mean(0), _covariance(x)
        eigenvalues = np.linalg.eigvalsh(root2 @ cov1 @ root2).clip(min=0)
        return float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(eigenvalues).sum())

    return distance


def frechet(features: np.ndarray, reference: np.ndarray) -> float:
    """Return the distance between `features` [m, d] and `reference` [n, d], at least 0 up to rounding (about 1e-9)."""
    return frechet_to(reference)(features)


def frechet_floor(reference: np.ndarray, n: int, seed: int) -> float:
    """Return the distance of `n` random rows of the reference to the other rows: the score of a perfect generator.

    Raises ValueError unless both sets have at least 2 rows.
    """
    reference = as_features(reference, "reference")
    if not 2 <= n <= len(reference) - 2:
        raise ValueError(f"n={n} of {len(reference)} reference rows; expected 2 to {len(reference) - 2}")
    order = shuffled(len(reference), Draw.FLOOR, seed)
    return frechet(reference[order[:n]], reference[order[n:]])


def _covariance(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)
