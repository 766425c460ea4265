"""Metrics of an image against the teacher's image of the same noise and condition, one value per image."""

from __future__ import annotations

import numpy as np
from torch import Tensor

MSE_FLOOR = 1e-6  # 60 dB, a quarter of an 8-bit grey level; without a floor, equal images would have infinite PSNR


def mse(images: Tensor, teacher: Tensor) -> np.ndarray:
    """Return the mean squared difference over pixels, [n] float64, of images [n, C, H, W] in [0, 1]."""
    if images.shape != teacher.shape:
        raise ValueError(f"images are {tuple(images.shape)}, the teacher's {tuple(teacher.shape)}; expected one shape")
    pairs = zip(images, teacher, strict=True)  # one at a time, because float64 takes twice the memory of the images
    return np.array([float((image.double() - other.double()).square().mean()) for image, other in pairs])


def psnr(mse: np.ndarray) -> np.ndarray:
    """Return the PSNR for a peak of 1, -10 log10(mse) in dB, [n] float64, at most 60, of values [n] of `mse`."""
    return -10 * np.log10(np.maximum(mse, MSE_FLOOR))


def cosine(features: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of embeddings [n, d], [n], in [-1, 1]. Raises ValueError for a zero embedding."""
    if features.shape != teacher.shape:
        raise ValueError(f"features are {features.shape}, the teacher's {teacher.shape}; expected one shape")
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(teacher, axis=1)
    if not lengths.all():
        raise ValueError(f"{int((lengths == 0).sum())} embeddings are zero; expected none, as a zero has no cosine")
    return (features * teacher).sum(1) / lengths
