"""What every set metric shares: the check of its inputs, and the ids of the rows that it draws."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream


class Draw(IntEnum):
    """Disjoint uses of `Stream.RESAMPLE`, as its round id."""

    BOOTSTRAP = 0
    REFERENCE = 1  # as many reference images as generated ones
    FLOOR = 2  # of the Fréchet distance
    CEILING = 3  # of precision, recall, density and coverage


def as_features(value: np.ndarray, name: str) -> np.ndarray:
    """`value` as float64 [n, d] with n >= 2. Raises ValueError for another shape and for what is not finite."""
    features = np.asarray(value, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"{name} has shape {features.shape}; expected [n, d] with at least two rows")
    bad = int((~np.isfinite(features)).any(1).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(features)} rows hold NaN or infinity; expected finite numbers")
    return features


def as_pair(features: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both checked, and of the same dimension d."""
    x, y = as_features(features, "features"), as_features(reference, "reference")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features are {x.shape[1]}-d, the reference {y.shape[1]}-d; expected one encoder for both")
    return x, y


def shuffled(count: int, draw: Draw, seed: int) -> np.ndarray:
    """A permutation of range(count) for this draw, int64."""
    return noise.permutation(count, Stream.RESAMPLE, seed=seed, round=draw)
