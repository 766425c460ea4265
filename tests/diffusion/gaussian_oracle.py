"""Gaussian data N(0, c^2): the exact network, exact ODE solution and exact variance of any transition, all by hand."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from redif_ray.diffusion.levels import (
    FlowMatching,
    Level,
    NoiseProcess,
    VarianceExploding,
    VariancePreserving,
    like,
)
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import Prediction


def stable_diffusion(**options: float) -> VariancePreserving:
    table = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
    return VariancePreserving(table, **options)


def cosine() -> VariancePreserving:
    return VariancePreserving(DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod)


def zero_terminal_snr() -> VariancePreserving:
    return VariancePreserving(
        DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
        ).alphas_cumprod
    )


PROCESSES: dict[str, NoiseProcess] = {
    "vp": stable_diffusion(),
    "cosine": cosine(),
    "zsnr": zero_terminal_snr(),
    "ve": VarianceExploding(),
    "flow": FlowMatching(),
}


class Gaussian:
    """E[x0 | x] of N(0, c^2) data; counts its calls and keeps the timesteps it was told."""

    def __init__(self, c: float) -> None:
        self.c, self.timesteps = c, list[float]()

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.timesteps.append(float(level.timestep))
        gain = level.alpha * self.c**2 / (level.alpha**2 * self.c**2 + level.sigma**2)
        x0 = like(gain, x) * x
        return Prediction(x0, (x - like(level.alpha, x) * x0) / like(level.sigma, x))

    def marginal_std(self, level: Level) -> Tensor:
        return torch.sqrt(level.alpha**2 * self.c**2 + level.sigma**2)

    def exact(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """The probability-flow ODE of Gaussian data only rescales: x / marginal std is conserved."""
        return x * self.marginal_std(s) / self.marginal_std(t)

    def final_std(self, schedule: Schedule, stds: Tensor) -> float:
        """Std at the end, from x_T = sigma_T eps: each transition is x -> gain x + S z."""
        variance = float(schedule[0].sigma) ** 2
        for i in range(schedule.steps):
            at, st, as_, ss = (
                float(v) for v in (schedule[i].alpha, schedule[i].sigma, schedule[i + 1].alpha, schedule[i + 1].sigma)
            )
            std, k = float(stds[i]), at * self.c**2 / (at**2 * self.c**2 + st**2)
            gain = as_ * k + max(ss**2 - std**2, 0) ** 0.5 * (1 - at * k) / st
            variance = gain**2 * variance + std**2
        return variance**0.5
