"""The optimiser of a phase, and one optimiser step with gradients summed over ranks and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from redif_ray.config import Learner, WarmStart
from redif_ray.learning.gradients import AllReduce, Gradients
from redif_ray.models.quantization import bitsandbytes

FIRST_STEP = (
    "This optimiser took no step before, so its learning rate is not the cause: choose networks.precision=float32 or "
    "bfloat16, which overflow later than float16, or check the weights"
)


def microbatches(count: int, size: int) -> list[slice]:
    """Return slices of at most `size` rows that together are `count` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def values_of(parts: Sequence[Tensor]) -> list[Any]:
    """Return the numbers of tensors of one shape, one of each microbatch; a device is waited for once, for all."""
    return torch.stack(list(parts)).tolist() if parts else []


def make_optimizer(parameters: Iterable[Parameter], learner: Learner) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter, arXiv 1711.05101) on `parameters`, with moments in 32 or 8 bits.

    8 bits are those of blocks of weights with a scale of their own (Dettmers et al., arXiv 2110.02861); parameters of
    less than 4,096 numbers keep 32. Each round's update sets the learning rate; nothing else reads `learner.lr` and
    `warm_start.lr`. Raises ConfigError where a package is missing.
    """
    trained = list(parameters)
    if learner.optimizer == "adamw":
        fused = all(p.device.type == "cuda" for p in trained)
        return torch.optim.AdamW(trained, weight_decay=learner.weight_decay, fused=fused)
    optim = bitsandbytes(f"learner.optimizer={learner.optimizer}").optim
    made: torch.optim.Optimizer = optim.AdamW8bit(trained, weight_decay=learner.weight_decay)
    return made


def optimiser_step(gradients: Gradients, losses: Mapping[str, float], max_grad_norm: float, where: str) -> float:
    """Sum gradients over ranks, clip their norm, take a step and clear them; return the norm before clipping.

    losses: value of each part of the loss, to check. where: start of an error's text.
    Raises FloatingPointError, on every rank, where a loss or the norm is not finite; the weights stay unchanged.
    """
    gradients.sum()
    optimizer, parameters = gradients.optimizer, gradients.parameters
    values = torch.tensor(list(losses.values()), dtype=torch.float64, device=parameters[0].device)
    if gradients.all_reduce is not None:
        gradients.all_reduce([values])
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    bad = [f"the {name} loss is {v}" for name, v in zip(losses, values.tolist(), strict=True) if not math.isfinite(v)]
    bad += [] if math.isfinite(norm) else [f"the gradient norm is {norm}"]
    if bad:
        optimizer.zero_grad(set_to_none=True)
        advice = "Lower the learning rate" if optimizer.state else FIRST_STEP
        raise FloatingPointError(f"{where}: {' and '.join(bad)}; the weights were not updated. {advice}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def idle_calls(made: int, rank: int, world: int, all_reduce: AllReduce, device: torch.device) -> int:
    """Return the number of idle calls after which every rank has called the network equally often.

    Ranks that shard a network gather its weights together, so each waits for the others in every call. made: calls that
    this rank makes anyway. Every rank must call this function.
    """
    counts = torch.zeros(world, device=device)
    counts[rank] = made
    all_reduce([counts])
    return int(counts.max()) - made


def learning_rate(config: Learner | WarmStart, round: int) -> float:
    """Return the learning rate of round `round` of the warm start, or of the method's own phase, counted from 0.

    The rate is constant, or falls along half a cosine from lr towards 0.
    """
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * round / config.rounds))
