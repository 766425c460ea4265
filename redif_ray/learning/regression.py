"""One optimiser step of a regression, in microbatches and over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from redif_ray.learning.gradients import Gradients
from redif_ray.learning.round_update import Learning
from redif_ray.learning.step import optimiser_step, values_of

Rows = TypeVar("Rows")


def regress(
    learning: Learning,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[Rows], Tensor],
    batches: Sequence[Rows],
    *,
    total: int,
    name: str,
    where: str,
) -> tuple[float, float]:
    """Take an optimiser step down the mean loss of `total` rows on all ranks; return this rank's part of it, and the
    gradient norm before clipping.

    losses: returns the losses [n] of one of the `batches`, this rank's rows. name: of the loss; where: start of an
    error's text. Raises FloatingPointError where the loss or a gradient is not finite; the weights stay unchanged.
    """
    gradients, parts = Gradients(optimizer, learning.all_reduce, learning.loss_scale), []
    for i, rows in enumerate(batches, 1):
        part = losses(rows).sum() / total
        gradients.add(part * learning.loss_scale, last=i == len(batches))
        parts.append(part.detach())
    loss = sum(values_of(parts), 0.0)
    return loss, optimiser_step(gradients, {name: loss}, learning.config.learner.max_grad_norm, where)
