"""A schedule by its own gradient: logits of increments, through the sampler (LD3, Tong et al., arXiv 2405.15506).

Levels are continuous while they are fitted, and so is the timestep that a discrete network is told: with a gradient
through the level alone the increments go the wrong way. In the end levels are rounded as everywhere. As in LD3, what
the network is told may be fitted apart from the level that is integrated; its soft teacher is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, NoiseProcess
from redif_ray.diffusion.schedules import Schedule, shift_ways, shifted, warp, warped
from redif_ray.search.space import SHIFT, floor

Loss = Callable[[Schedule, int], Tensor]  # (schedule, iteration) -> what is to be small, with its gradient


def continuous(process: NoiseProcess, base: Schedule, logits: Tensor, shifts: Tensor | None = None) -> Schedule:
    """`base` warped by `logits` [N], called at shifts `shifts` [N], without rounding; gradients flow to both."""
    lambdas = warp(base.levels.half_log_snr.clamp(*process.span), logits, floor(process, base))
    inner, ends = process.between(lambdas[1:-1]), base.levels
    first, last = ends[torch.tensor([0])], ends[torch.tensor([base.steps])]
    parts = [
        torch.cat([getattr(level, name) for level in (first, inner, last)]) for name in ("alpha", "sigma", "timestep")
    ]
    network_timesteps = None if shifts is None else process.between(lambdas[:-1] + shift_ways(lambdas, shifts)).timestep
    return Schedule(Level(*parts), f"{base.name}, warped", network_timesteps)


def descend(
    process: NoiseProcess, base: Schedule, loss: Loss, *, iterations: int, lr: float, network_timesteps: bool = False
) -> list[Schedule]:
    """Adam on the logits from 0: the rounded schedules along the way, each quarter's last mean first.

    network_timesteps: on the shifts, too. The mean of the last quarter of the iterates is less noisy than the last
    one; all of them are candidates.
    """
    start = torch.full((2 if network_timesteps else 1, base.steps), 1e-9, dtype=torch.float64)
    moving = start.requires_grad_(True)
    optimiser = torch.optim.Adam([moving], lr=lr)
    seen: list[Tensor] = []
    for i in range(iterations):
        value = loss(continuous(process, base, moving[0], _bounded(moving[1]) if network_timesteps else None), i)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        with torch.no_grad():
            moving[0] -= moving[0].mean()
        if not bool(torch.isfinite(moving).all()):
            raise FloatingPointError(f"the levels' gradient is not finite at iteration {i}; lower search.descent.lr")
        seen.append(moving.detach().clone())
    quarter = max(1, iterations // 4)
    found = []
    for end in range(iterations, 0, -quarter):
        mean = torch.stack(seen[max(0, end - quarter) : end]).mean(0)
        schedule = warped(process, base, mean[0], floor(process, base))
        found.append(shifted(process, schedule, _bounded(mean[1])) if network_timesteps else schedule)
    return found


def _bounded(values: Tensor) -> Tensor:
    """Within the range of shifts that trials look in."""
    return SHIFT[1] * torch.tanh(values)
