"""Policy-gradient surrogates over (trajectory, step) pairs, [P] each; means and weights are the caller's.

`LOSSES` names those that ship; `learner.loss=path/to/file.py:name` names a function of your own of the same signature.

Log ratios follow the convention of `redif_ray.diffusion.transition.log_prob`: a mean over the D dimensions, so
rho = (true ratio)^(1/D), and a clip range is small accordingly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redif_ray.diffusion.levels import like
from redif_ray.diffusion.transition import log_prob
from redif_ray.learning.batch import RoundBatch
from redif_ray.registry import found_or_imported


@dataclass(frozen=True, slots=True)
class Action:
    """What the policy did in P stochastic pairs of a round, given by `rows` and `steps` [P], and what it would do now.

    mean: [P, ...] of the policy as it is, with its gradient. std: S [P] float64, above 0.
    """

    batch: RoundBatch
    rows: Tensor
    steps: Tensor
    mean: Tensor
    std: Tensor

    @property
    def taken(self) -> Tensor:
        """The next state that was drawn, [P, ...]."""
        return self.batch.latents[self.steps + 1, self.rows]

    @property
    def log_prob(self) -> Tensor:
        """The log density of the action, [P], with its gradient."""
        return log_prob(self.taken, self.mean, self.std)

    @property
    def old_mean(self) -> Tensor:
        """The mean of the policy that played, [P, ...]."""
        return self.mean.detach() if self.batch.on_policy else self.batch.means[self.steps, self.rows]

    def log_ratio(self, log_prob: Tensor) -> Tensor:
        """The log of the density's ratio to that of the policy that played, [P]; 0, with a gradient, on-policy."""
        return log_prob - (log_prob.detach() if self.batch.on_policy else self.batch.log_probs[self.steps, self.rows])


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


def _ppo_clip(action: Action, advantage: Tensor, clip: float) -> Surrogate:
    return ppo_clip(action.log_ratio(action.log_prob), advantage, clip)


def _reinforce(action: Action, advantage: Tensor, clip: float) -> Surrogate:
    density = action.log_prob
    never = torch.zeros_like(density, dtype=torch.bool)
    return Surrogate(reinforce(density, advantage), action.log_ratio(density).detach(), never)


def _grpo_guard(action: Action, advantage: Tensor, clip: float) -> Surrogate:
    old = action.old_mean
    return grpo_guard(action.mean, old, (action.taken - old) / like(action.std, old), advantage, clip)


LossFunction = Callable[[Action, Tensor, float], Surrogate]  # action, advantage [P], clip range
LOSSES: Mapping[str, LossFunction] = {"ppo_clip": _ppo_clip, "reinforce": _reinforce, "grpo_guard": _grpo_guard}


def find_loss(name: str) -> LossFunction:
    """Return the surrogate that `learner.loss` names. Raises UserCodeError for code that cannot be imported."""
    return found_or_imported(name, LOSSES, "learner.loss")


def step_weights(stds: Tensor, kind: Literal["none", "std"]) -> Tensor:
    """Weight of each step's policy loss, [N] float64: ones, or S_k over the mean S of the stochastic steps."""
    if kind == "none":
        return torch.ones_like(stds, dtype=torch.float64)
    if not bool((stds > 0).any()):
        raise ValueError(f"step weights of S = {stds.tolist()}: expected a step with S > 0; raise exploration.eta")
    return stds.double() / stds[stds > 0].double().mean()
