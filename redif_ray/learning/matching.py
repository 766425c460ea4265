"""Distribution matching: bring the law of the student's images to the teacher's, by two denoisers.

    grad_x KL(student || teacher) ~ D_fake(x_t) - D_teacher(x_t),    x_t = alpha x + sigma eps

at a student's image x and a noise level drawn at random, where D predicts the clean image. D_fake is a network that is
trained on the student's images as they are now (Yin et al., DMD2, arXiv 2405.14867). Neither data nor the teacher's
images are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redif_ray.diffusion import noise, schedules
from redif_ray.diffusion.levels import Level, NoiseProcess, like
from redif_ray.diffusion.noise import Stream

LEVELS = 50  # levels of the grid; its noisiest is left out, so that 2 % to 98 % of the timesteps are drawn as in DMD2


def noised(
    x: Tensor, groups: Sequence[int], process: NoiseProcess, *, seed: int, round: int, draw: int
) -> tuple[Tensor, Level]:
    """Add noise of a random level to each row of x [B, *latent]; return x_t [B, *latent] and the levels, [B].

    groups: of each row, which decides level and noise together with `seed`, `round` and `draw`, a number from 0.
    """
    grid = next(iter(schedules.named(process, min(LEVELS, getattr(process, "timesteps", LEVELS))).values()))
    ids = {"seed": seed, "round": round, "step": draw}
    drawn = [float(noise.uniform(1, Stream.MATCHING, group=g, sibling=1, **ids)[0]) for g in groups]
    level = grid.levels[torch.tensor([1 + int(u * (grid.steps - 1)) for u in drawn])]
    eps = noise.rows(groups, [0] * len(groups), x.shape[1:], Stream.MATCHING, "cpu", **ids).to(x)
    return like(level.alpha, x) * x + like(level.sigma, x) * eps, level


def direction(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """Return minus the gradient of the divergence at x, (D_teacher - D_fake) / ||x - D_teacher||_1, [B, *latent].

    teacher, fake: denoised x_t, [B, *latent]. The norm is that of each row, and makes levels count alike (DMD, eq. 8).
    """
    scale = (x - teacher).abs().flatten(1).sum(1).clamp_min(1e-6)
    return (teacher - fake) / like(scale, x)


def denoising_loss(denoised: Tensor, x: Tensor, level: Level) -> Tensor:
    """Return (1 + alpha^2 / sigma^2) times the mean square error of each row, [B].

    The weight is that of velocity prediction (Salimans & Ho, arXiv 2202.00512), for networks of every kind.
    """
    error = (denoised - x).square().flatten(1).mean(1)
    return (1 + (level.alpha / level.sigma).square()).to(error) * error
