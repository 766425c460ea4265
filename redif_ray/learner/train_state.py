"""What a learner trains, as the tensors of a checkpoint: whole ones, however many ranks share them out."""

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
    """Copies on the CPU of weights, moments and average. Every rank calls it; those with keep=False get nothing."""
    parameters = trainable(student)
    found = pack("student", parameters) | pack("optimizer", optimizer_tensors(optimizer, parameters))
    if average is not None:
        found |= pack("average", average.state_dict())
    return whole(found, keep=keep)


def load_trained(
    student: DiffusionModel,
    optimizer: torch.optim.Optimizer,
    average: ExponentialAverage | None,
    tensors: Mapping[str, Tensor],
) -> None:
    """Inverse of `trained`, for as many ranks as there are now. Raises ModelError for another student's."""
    parameters = trainable(student)
    set_weights(student, unpack("student", tensors))
    load_optimizer(optimizer, parameters, shares(unpack("optimizer", tensors), parameters))
    if average is not None:
        average.load_state_dict(shares(unpack("average", tensors), parameters))
