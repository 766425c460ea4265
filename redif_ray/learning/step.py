"""The optimiser of a phase, and one step of it, summed over ranks and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from redif_ray.config import Learner

AllReduce = Callable[[list[Tensor]], None]  # sums each tensor over all ranks, in place


def make_optimizer(parameters: Iterable[Parameter], learner: Learner) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter, arXiv 1711.05101) on `parameters`.

    Its learning rate is set by each round's update, which alone reads `learner.lr` and `warm_start.lr`.
    """
    return torch.optim.AdamW(parameters, weight_decay=learner.weight_decay)


def optimiser_step(
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, float],
    max_grad_norm: float,
    where: str,
    all_reduce: AllReduce | None = None,
    loss_scale: float = 1.0,
) -> float:
    """Sum gradients over ranks, clip their norm, step; returns the norm before clipping and leaves no gradients.

    loss_scale: what the loss was multiplied by before its gradients were taken; they are divided by it.
    Raises FloatingPointError, on every rank, where a loss or the norm is not finite; the weights stay as they were.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:  # a rank may hold no pair of a minibatch, and must sum the same tensors all the same
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad.div_(loss_scale)
    values = torch.tensor(list(losses.values()), dtype=torch.float64, device=parameters[0].device)
    if all_reduce is not None:
        all_reduce([*(p.grad for p in parameters if p.grad is not None), values])
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    bad = [f"the {name} loss is {v}" for name, v in zip(losses, values.tolist(), strict=True) if not math.isfinite(v)]
    bad += [] if math.isfinite(norm) else [f"the gradient norm is {norm}"]
    if bad:
        optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(f"{where}: {' and '.join(bad)}; the weights were not updated. Lower the learning rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def learning_rate(config: Learner, round: int) -> float:
    """Return the rate at round `round` of the method's own phase, counted from 0: constant, or half a cosine from lr
    towards 0.
    """
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * round / config.rounds))
