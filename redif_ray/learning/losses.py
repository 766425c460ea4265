"""Policy-gradient surrogates of (trajectory, step) pairs, [P] each; the caller weighs and averages them.

`LOSSES` lists the built-in surrogates; `learner.loss=path/to/file.py:name` selects a function of your own with the same
signature.

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
from redif_ray.diffusion.transfer import picked
from redif_ray.diffusion.transition import log_prob
from redif_ray.learning.batch import RoundBatch
from redif_ray.registry import found_or_imported


@dataclass(frozen=True, slots=True)
class Action:
    """The actions of a round at P stochastic (trajectory, step) pairs, beside the current policy's means there.

    rows, steps: [P] int64, position of each pair in `batch`. mean: [P, ...], mean of the current policy, with its
    gradient. std: S of each pair, [P] float64, above 0.
    """

    batch: RoundBatch
    rows: Tensor
    steps: Tensor
    mean: Tensor
    std: Tensor

    @property
    def taken(self) -> Tensor:
        """Return the next state that the rollout drew, [P, ...]."""
        return picked(self.batch.latents, self.steps + 1, self.rows)

    @property
    def log_prob(self) -> Tensor:
        """Return the log density of the action under the current policy, [P], with its gradient."""
        return log_prob(self.taken, self.mean, self.std)

    @property
    def old_mean(self) -> Tensor:
        """Return the mean of the behaviour policy, [P, ...]."""
        if self.batch.on_policy:
            return self.mean.detach()
        if self.batch.means is None:
            raise ValueError("the loss reads means that the round does not carry; set reads_means=True in its phase")
        return picked(self.batch.means, self.steps, self.rows)

    def log_ratio(self, log_prob: Tensor) -> Tensor:
        """Return the log ratio of a density to the behaviour policy's, [P]; on-policy it is 0, with a gradient."""
        return log_prob - (
            log_prob.detach() if self.batch.on_policy else picked(self.batch.log_probs, self.steps, self.rows)
        )


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The loss of P pairs and the quantities that metrics need.

    loss: [P], with its gradient. log_ratio: [P], detached. clipped: [P] bool, True where the clip bound is active, so
    that the pair has no gradient.
    """

    loss: Tensor
    log_ratio: Tensor
    clipped: Tensor


def default_clip(dimensions: int) -> float:
    """Return 1e-4 sqrt(16384 / D): the published 1e-4 at D = 16384, scaled with the spread of the ratio."""
    return 1e-4 * math.sqrt(16384 / dimensions)


def ppo_clip(log_ratio: Tensor, advantage: Tensor, clip: float) -> Surrogate:
    """Return the clipped surrogate of PPO (Schulman et al., arXiv 1707.06347).

    It is max(-A rho, -A clip(rho, 1 - e, 1 + e)), with rho = exp(log_ratio) and e = clip.
    """
    ratio = torch.exp(log_ratio)
    plain = -advantage * ratio
    bounded = -advantage * ratio.clamp(1 - clip, 1 + clip)
    return Surrogate(torch.maximum(plain, bounded), log_ratio.detach(), (bounded > plain).detach())


def reinforce(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return the loss of REINFORCE (Williams, 1992): -A log_prob, [P]."""
    return -advantage * log_prob


def grpo_guard(mean_new: Tensor, mean_old: Tensor, z: Tensor, advantage: Tensor, clip: float) -> Surrogate:
    """Return the clipped surrogate of GRPO-Guard (arXiv 2510.22319), [P].

    Its ratio is rho = exp(mean over D of z (mean_new - mean_old)).
    mean_new, mean_old, z: [P, ...]; z = (x_s - mean_old) / S is the action taken. The log density ratio is
    z dm / S - dm^2 / (2 S^2) with dm = mean_new - mean_old; GRPO-Guard drops its 1 / S, which weighs steps unevenly,
    and its quadratic term, which pushes every ratio below 1.
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
WITHOUT_MEANS = ("ppo_clip", "reinforce")  # losses that do not read `old_mean`; a loss of the user's own may


def find_loss(name: str) -> LossFunction:
    """Return the surrogate that `learner.loss` names. Raises UserCodeError for code that cannot be imported."""
    return found_or_imported(name, LOSSES, "learner.loss")


def step_weights(stds: Tensor, kind: Literal["none", "std"]) -> Tensor:
    """Return the weight of each step's policy loss, [N] float64: 1, or S_k over the mean S of the stochastic steps.

    Raises ValueError for kind `std` without a stochastic step.
    """
    if kind == "none":
        return torch.ones_like(stds, dtype=torch.float64)
    if not bool((stds > 0).any()):
        raise ValueError(f"step_weight={kind}: S is {stds.tolist()}; expected a step with S > 0: raise exploration.eta")
    return stds.double() / stds[stds > 0].double().mean()
