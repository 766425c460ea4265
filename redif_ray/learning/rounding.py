"""Rounding: how much a prediction depends on its batch, and what is rounded on its way between workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_ray.config import LEARNED, Config


def rounds_apart(config: Config) -> bool:
    """Tell whether predictions change with the batch by more than the rounding of float32 sums."""
    return config.networks.precision != "float32" or bool(config.rollout.gpus or config.learner.gpus)


def ratio_tolerance(config: Config) -> float:
    """Return the largest |log ratio| accepted of a fresh round: `guard.ratio_tolerance`, or a bound for rounding."""
    return config.guard.ratio_tolerance or (5e-2 if rounds_apart(config) else 1e-4)


def travelling_dtype(config: Config) -> type[np.floating[Any]]:
    """Return the dtype of last latents between workers."""
    return np.float32 if config.networks.precision == "float32" else np.float16


def image_dtype(config: Config) -> type[np.generic]:
    """Return the dtype of the teacher's images between workers: 8 bits where the networks compute in 16.

    A reward that learns from the images might tell rounded ones from others, so it gets them as `travelling_dtype`.
    """
    dtype = travelling_dtype(config)
    return np.uint8 if dtype is np.float16 and LEARNED not in config.reward.terms else dtype


def images_as_sent(images: np.ndarray, config: Config) -> np.ndarray:
    """Return the teacher's images, float32 in [0, 1], as they travel between workers."""
    dtype = image_dtype(config)
    return np.rint(255 * images.clip(0, 1)).astype(dtype) if dtype is np.uint8 else images.astype(dtype, copy=False)


def images_received(sent: np.ndarray) -> Tensor:
    """Return images that travelled, float32 in [0, 1]."""
    images = torch.from_numpy(sent.astype(np.float32))
    return images / 255 if sent.dtype == np.uint8 else images


def as_sent(x: Tensor, config: Config) -> Tensor:
    """Return last latents, float32, with the rounding in which reward workers got them."""
    return x if travelling_dtype(config) is np.float32 else x.half().float()
