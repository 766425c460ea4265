"""Gaussian smoothing, shared by `ssim` and `blurred_mse`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from redif_ray.diffusion.transfer import sent


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return weights [size] exp(-x^2 / (2 sigma^2)), x in pixels from the middle, with sum 1.

    like: a tensor of the dtype and device that the weights get.
    """
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-x.square() / (2 * sigma**2))
    return sent(weights / weights.sum(), like.device, like.dtype)


def smooth(images: Tensor, window: Tensor) -> Tensor:
    """Smooth each channel of [B, C, H, W] with the separable window [k], unpadded: [B, C, H - k + 1, W - k + 1]."""
    planes = images.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, window.reshape(1, 1, -1, 1)), window.reshape(1, 1, 1, -1))
    return planes.reshape(*images.shape[:2], *planes.shape[2:])
