"""The parts that all set metrics share: the check of their inputs, and the random draws of rows."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream


class Draw(IntEnum):
    """The disjoint uses of `Stream.RESAMPLE`; the value is the stream's round id."""

    BOOTSTRAP = 0
    REFERENCE = 1  # as many reference images as generated ones
    FLOOR = 2  # the floor of the Fréchet distance
    CEILING = 3  # the ceilings of precision, recall, density and coverage


def as_features(value: np.ndarray, name: str) -> np.ndarray:
    """Return `value` as float64 [n, d]. Raises ValueError for another shape, n < 2, NaN or infinity."""
    features = np.asarray(value, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"{name} has shape {features.shape}; expected [n, d] with at least two rows")
    bad = int((~np.isfinite(features)).any(1).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(features)} rows hold NaN or infinity; expected finite numbers")
    return features


def as_pair(features: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays as float64 [m, d] and [n, d]. Raises ValueError as `as_features`, and for different d."""
    x, y = as_features(features, "features"), as_features(reference, "reference")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features are {x.shape[1]}-d, the reference {y.shape[1]}-d; expected both of one encoder")
    return x, y


def shuffled(count: int, draw: Draw, seed: int) -> np.ndarray:
    """Return the permutation [count] of range(count) that belongs to this draw and seed, int64."""
    return noise.permutation(count, Stream.RESAMPLE, seed=seed, round=draw)
