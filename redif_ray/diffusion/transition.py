"""The Gaussian transition of all samplers, and its density.

    mean = alpha_s x0_hat + sqrt(sigma_s^2 - S^2) eps_hat            x_s = mean + S z

with S the exploration std. S = 0 is DDIM (Song et al., arXiv 2010.02502), the deterministic solver at deployment;
`posterior` is DDIM-eta, or the ancestral Euler step where alpha = 1; `cps` is Flow-CPS (arXiv 2509.05952).
Given the true (x0, eps), x_s has exactly the noise of level s for every S in [0, sigma_s].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, like
from redif_ray.diffusion.transfer import sent

ExplorationKind = Literal["posterior", "cps"]
DETERMINISTIC = torch.zeros((), dtype=torch.float64)  # S of a step that does not explore


@dataclass(frozen=True, slots=True)
class Prediction:
    """A network's estimates at one level: `x0` and `eps`, each [B, ...], with x = alpha x0 + sigma eps."""

    x0: Tensor
    eps: Tensor


def exploration_std(t: Level, s: Level, *, eta: float, kind: ExplorationKind = "posterior") -> Tensor:
    """Return S of the step from level t to the cleaner level s, float64, of the levels' shape; eta in [0, 1].

    posterior: eta sigma_s sqrt(1 - (alpha_t sigma_s)^2 / (alpha_s sigma_t)^2)
    cps:       sigma_s sin(eta pi / 2)
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: expected a value in [0, 1]")
    if kind == "cps":
        return s.sigma * math.sin(eta * math.pi / 2)
    kept = (t.alpha * s.sigma) / (s.alpha * t.sigma)
    return eta * s.sigma * torch.sqrt((1 - kept**2).clamp(min=0))


def transition_mean(prediction: Prediction, s: Level, std: Tensor) -> Tensor:
    """Return the mean of x_s, in the prediction's dtype. std: S, shape [] or [B]."""
    carried = torch.sqrt((s.sigma**2 - std**2).clamp(min=0))
    return like(s.alpha, prediction.x0) * prediction.x0 + like(carried, prediction.eps) * prediction.eps


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the log density of x under N(mean, S^2 I), averaged over the D dimensions of a sample: [B], float32.

    -(x - mean)^2 / (2 S^2) - ln S - ln(2 pi) / 2, mean over D. This is the field's convention: a ratio of such
    densities is the true ratio to the power 1/D, and clip ranges are small accordingly. S must be above 0.
    """
    if not bool((std > 0).all()):
        raise ValueError("log_prob of a deterministic step: the density exists only for S > 0")
    square = (x.float() - mean.float()).square().flatten(1).mean(1)
    std = sent(std, square.device, torch.float64).expand(square.shape)
    constant = torch.log(std) + 0.5 * math.log(2 * math.pi)
    return -square / (2 * std**2).float() - constant.float()
