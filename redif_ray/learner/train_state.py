"""The trained state of a learner as tensors of a checkpoint: whole tensors, however many ranks shard them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from redif_ray.checkpoint import load_optimizer, optimizer_tensors, pack, unpack
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.sharding import shares, whole
from redif_ray.models.student import set_weights, trainable


def trained(
    student: DiffusionModel, optimizer: torch.optim.Optimizer, average: ExponentialAverage | None, *, keep: bool = True
) -> dict[str, Tensor]:
    """Return CPU copies of weights, optimiser moments and average.

    Every rank must call this; a rank with keep=False gets an empty dict.
    """
    parameters = trainable(student)
    tensors = pack("student", parameters) | pack("optimizer", optimizer_tensors(optimizer, parameters))
    if average is not None:
        tensors |= pack("average", average.state_dict())
    return whole(tensors, keep=keep)


def load_trained(
    student: DiffusionModel,
    optimizer: torch.optim.Optimizer,
    average: ExponentialAverage | None,
    tensors: Mapping[str, Tensor],
) -> None:
    """Restore the tensors of `trained`, for any number of ranks. Raises ModelError for tensors of another student."""
    parameters = trainable(student)
    set_weights(student, unpack("student", tensors))
    load_optimizer(optimizer, parameters, shares(unpack("optimizer", tensors), parameters))
    if average is not None:
        average.load_state_dict(shares(unpack("average", tensors), parameters))
