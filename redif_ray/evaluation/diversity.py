"""Diversity: how far apart the images of one condition are in DINOv2 (Oquab et al., arXiv 2304.07193) or DINOv3.

A student that learns from a reward may come to draw a caption in one way, whatever the noise; recall among images of
many captions does not show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from redif_ray import config
from redif_ray.config import ConfigError
from redif_ray.rewards.dino import dino_tokens
from redif_ray.rewards.pretrained import ImageEncoder, at_hub, find_model
from redif_ray.rewards.term import RewardError, Setting

BATCH = 32  # images that the encoder sees at once


def load_likeness(
    wanted: config.Diversity, image_shape: Sequence[int], device: str | torch.device = "cpu"
) -> ImageEncoder:
    """Load the encoder in whose class token images are compared. Raises ConfigError.

    image_shape: (C, H, W) of the images, of which the encoder sees the whole.
    """
    channels, height, width = image_shape
    setting = Setting(0, (channels, height, width), torch.device(device))
    try:
        return dino_tokens(str(wanted.encoder), False, setting).at_most(BATCH)
    except RewardError as error:
        raise ConfigError(f"evaluation.diversity.encoder: {error}") from error


def mean_distance(features: Tensor, noises: int) -> Tensor:
    """Return the mean distance 1 - cosine of every two images of a condition, [n] float64 from 0 to 2.

    features: [n * noises, D], those of a condition one after the other; noises: at least 2.
    """
    each = functional.normalize(features.double(), dim=1).unflatten(0, (-1, noises))
    cosines = (each.sum(1).square().sum(1) - noises) / (noises * (noises - 1))  # |sum of u|^2 = m + sum of cosines
    return 1 - cosines


def diversity(wanted: config.Diversity, distances: np.ndarray) -> dict[str, Any]:
    """Return the fields of `summary.Diversity`. distances: [conditions, 2], of the student and of the teacher."""
    student, teacher = distances.mean(0)
    change = distances[:, 0] - distances[:, 1]
    return {
        "encoder": Path(at_hub(find_model(str(wanted.encoder)))[0]).name,
        "conditions": len(distances),
        "noises": wanted.noises,
        "student": float(student),
        "teacher": float(teacher),
        "change_se": float(change.std(ddof=1) / len(change) ** 0.5),
    }
