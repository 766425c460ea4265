"""Policy-gradient surrogates over (trajectory, step) pairs, [P] each; means and weights are the caller's.

Log ratios follow the convention of `redif_ray.diffusion.transition.log_prob`: a mean over the D dimensions, so
rho = (true ratio)^(1/D), and a clip range is small accordingly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """`loss` [P] with its gradient; `log_ratio` [P] and `clipped` [P] bool (the bound holds: no gradient), detached."""

    loss: Tensor
    log_ratio: Tensor
    clipped: Tensor


def default_clip(dimensions: int) -> float:
    """1e-4 sqrt(16384 / D): the published 1e-4 at D = 16384 held at the same width in units of the ratio's spread."""
    return 1e-4 * math.sqrt(16384 / dimensions)


def ppo_clip(log_ratio: Tensor, advantage: Tensor, clip: float) -> Surrogate:
    """PPO (Schulman et al., arXiv 1707.06347): max(-A rho, -A clip(rho, 1 - e, 1 + e)), rho = exp(log_ratio)."""
    ratio = torch.exp(log_ratio)
    plain = -advantage * ratio
    bounded = -advantage * ratio.clamp(1 - clip, 1 + clip)
    return Surrogate(torch.maximum(plain, bounded), log_ratio.detach(), (bounded > plain).detach())


def reinforce(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """REINFORCE (Williams, 1992): -A log_prob, [P]."""
    return -advantage * log_prob


def grpo_guard(mean_new: Tensor, mean_old: Tensor, z: Tensor, advantage: Tensor, clip: float) -> Surrogate:
    """GRPO-Guard (arXiv 2510.22319): the clipped surrogate of rho = exp(mean over D of z (mean_new - mean_old)).

    mean_new, mean_old, z: [P, ...]; z = (x_s - mean_old) / S is the action taken. The log density ratio is
    z dm / S - dm^2 / (2 S^2): this drops its 1 / S, which weighs steps unevenly, and the quadratic term, which pushes
    every ratio below 1.
    """
    return ppo_clip((z * (mean_new - mean_old)).flatten(1).mean(1), advantage, clip)


def step_weights(stds: Tensor, kind: Literal["none", "std"]) -> Tensor:
    """Weight of each step's policy loss, [N] float64: ones, or S_k over the mean S of the stochastic steps."""
    if kind == "none":
        return torch.ones_like(stds, dtype=torch.float64)
    if not bool((stds > 0).any()):
        raise ValueError(f"step weights of S = {stds.tolist()}: expected a step with S > 0; raise exploration.eta")
    return stds.double() / stds[stds > 0].double().mean()
