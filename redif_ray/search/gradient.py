"""A schedule by its own gradient: logits of increments, through the sampler (LD3, Tong et al., arXiv 2405.15506).

Levels are continuous while they are fitted, and so is the timestep that a discrete network is told: with a gradient
through the level alone the increments go the wrong way. In the end levels are rounded as everywhere. LD3's soft teacher
is left out, and so are its offsets between the level that is integrated and the one that the network is told, which
trials look for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, NoiseProcess
from redif_ray.diffusion.schedules import Schedule, warp, warped
from redif_ray.search.space import floor

Loss = Callable[[Schedule, int], Tensor]  # (schedule, iteration) -> what is to be small, with its gradient


def continuous(process: NoiseProcess, base: Schedule, logits: Tensor) -> Schedule:
    """`base` warped by `logits` [N] without rounding; gradients flow to them."""
    lambdas = warp(base.levels.half_log_snr.clamp(*process.span), logits, floor(process, base))
    inner, ends = process.between(lambdas[1:-1]), base.levels
    first, last = ends[torch.tensor([0])], ends[torch.tensor([base.steps])]
    parts = [
        torch.cat([getattr(level, name) for level in (first, inner, last)]) for name in ("alpha", "sigma", "timestep")
    ]
    return Schedule(Level(*parts), f"{base.name}, warped")


def descend(
    process: NoiseProcess, base: Schedule, loss: Loss, *, iterations: int, lr: float
) -> list[Schedule]:
    """Adam on the logits from 0: the rounded schedules along the way, each quarter's last mean first.

    The mean of the last quarter of the iterates is less noisy than the last one; all of them are candidates.
    """
    logits = torch.full((base.steps,), 1e-9, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=lr)
    seen: list[Tensor] = []
    for i in range(iterations):
        value = loss(continuous(process, base, logits), i)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        with torch.no_grad():
            logits -= logits.mean()
        if not bool(torch.isfinite(logits).all()):
            raise FloatingPointError(f"the levels' gradient is not finite at iteration {i}; lower search.descent.lr")
        seen.append(logits.detach().clone())
    quarter = max(1, iterations // 4)
    ends = range(iterations, 0, -quarter)
    means = [torch.stack(seen[max(0, end - quarter) : end]).mean(0) for end in ends]
    return [warped(process, base, mean, floor(process, base)) for mean in means]
