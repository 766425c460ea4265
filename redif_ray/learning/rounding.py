"""Rounding: how much a prediction depends on its batch, and what is rounded on its way between workers."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from redif_ray.config import Config


def rounds_apart(config: Config) -> bool:
    """Tell whether predictions change with the batch by more than the rounding of float32 sums."""
    return config.networks.precision != "float32" or bool(config.rollout.gpus or config.learner.gpus)


def ratio_tolerance(config: Config) -> float:
    """Return the largest |log ratio| accepted of a fresh round: `guard.ratio_tolerance`, or a bound for rounding."""
    return config.guard.ratio_tolerance or (5e-2 if rounds_apart(config) else 1e-4)


def travelling_dtype(config: Config) -> type[np.floating[Any]]:
    """Return the dtype of last latents and of the teacher's images between workers."""
    return np.float32 if config.networks.precision == "float32" else np.float16


def as_sent(x: Tensor, config: Config) -> Tensor:
    """Return last latents, float32, with the rounding in which reward workers got them."""
    return x if travelling_dtype(config) is np.float32 else x.half().float()
