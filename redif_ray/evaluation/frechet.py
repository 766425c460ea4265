"""Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500), squared as FID reports it.

It is called FID only with Inception-v3's features; this one takes any. Its estimate is biased upwards: two samples of
one law are apart by a floor that grows with dimensions / samples. Compare only at equal n, and print `frechet_floor`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from redif_ray.evaluation.features import Draw, as_features, as_pair, shuffled


def frechet_to(reference: np.ndarray) -> Callable[[np.ndarray], float]:
    """The distance to `reference` [n, d], as a function of features [m, d]; what the reference costs is paid once.

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2), all in float64. The matrix in the root is symmetric and
    not negative, so the trace of its root is the sum of the roots of its eigenvalues, also where one is singular.
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
    """The distance between `features` [m, d] and `reference` [n, d]; not negative but for rounding (1e-9 or so)."""
    return frechet_to(reference)(features)


def frechet_floor(reference: np.ndarray, n: int, seed: int) -> float:
    """The distance of `n` rows of the reference, drawn at random, to the others: what a perfect generator would get."""
    reference = as_features(reference, "reference")
    if not 2 <= n <= len(reference) - 2:
        raise ValueError(f"n={n} of {len(reference)} reference rows; expected 2 to {len(reference) - 2}")
    order = shuffled(len(reference), Draw.FLOOR, seed)
    return frechet(reference[order[:n]], reference[order[n:]])


def _covariance(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)
