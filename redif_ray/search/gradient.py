"""Fitting a schedule by back-propagation through the sampler (LD3, Tong et al., arXiv 2405.15506).

The fitted parameters are logits of the increments. Levels are continuous during the fit, and so is the timestep that a
discrete network is called with: a gradient through the level alone moves the increments the wrong way. The results have
rounded levels, as all schedules. As in LD3, the network's timesteps may be fitted apart from the levels that are
integrated; LD3's soft teacher is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, NoiseProcess
from redif_ray.diffusion.schedules import Schedule, shift_ways, shifted, warp, warped
from redif_ray.search.space import SHIFT, floor

Loss = Callable[[Schedule, int], Tensor]  # (schedule, iteration) -> the scalar to minimise, with its gradient


def continuous(process: NoiseProcess, base: Schedule, logits: Tensor, shifts: Tensor | None = None) -> Schedule:
    """Return `base` warped by `logits` [N], without rounding; gradients flow to `logits` and `shifts`.

    shifts: float [N] in (-1, 1) by which the network's timesteps move from the levels; None: network and levels agree.
    """
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
    """Minimise `loss` by Adam on the logits, from 0, and return rounded candidate schedules.

    Each candidate is the mean of a quarter of the iterates, last quarter first; a mean is less noisy than an iterate.
    network_timesteps: fit the shifts of the network's timesteps, too. Raises FloatingPointError if an iterate is not
    finite.
    """
    start = torch.full((2 if network_timesteps else 1, base.steps), 1e-9, dtype=torch.float64)
    moving = start.requires_grad_(True)
    optimiser = torch.optim.Adam([moving], lr=lr)
    iterates: list[Tensor] = []
    for i in range(iterations):
        value = loss(continuous(process, base, moving[0], bounded(moving[1]) if network_timesteps else None), i)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        with torch.no_grad():
            moving[0] -= moving[0].mean()
        if not bool(torch.isfinite(moving).all()):
            raise FloatingPointError(
                f"the levels are not finite after iteration {i} of descent; lower search.descent.lr"
            )
        iterates.append(moving.detach().clone())
    quarter = max(1, iterations // 4)
    candidates = []
    for end in range(iterations, 0, -quarter):
        mean = torch.stack(iterates[max(0, end - quarter) : end]).mean(0)
        schedule = warped(process, base, mean[0], floor(process, base))
        candidates.append(shifted(process, schedule, bounded(mean[1])) if network_timesteps else schedule)
    return candidates


def bounded(values: Tensor) -> Tensor:
    """Map any values to the range of shifts that trials search."""
    return SHIFT[1] * torch.tanh(values)
