"""The student's rollout: N transitions of the Gaussian policy, with the density of each action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_ray.diffusion.levels import like
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import log_prob, transition_mean

Guide = Callable[[Tensor, int], Tensor]  # (x, step) -> the teacher's mean for some rows


@dataclass(frozen=True, slots=True)
class Episode:
    """The trajectories of R rows, float32.

    latents: [N + 1, R, ...]. means: [N, R, ...]. log_probs: [N, R], 0 at deterministic steps.
    """

    latents: Tensor
    means: Tensor
    log_probs: Tensor


@torch.no_grad()
def rollout(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    stds: Tensor,
    noise: Callable[[int], Tensor],
    *,
    once: Predict | None = None,
    shared: int = 1,
    siblings: int = 1,
    guide: Guide | None = None,
    guided: Tensor | None = None,
) -> Episode:
    """Follow the policy from x = x_T [R, ...]: x_{k+1} = mean_k + S_k z_k, with z_k = noise(k) and S = stds [N].

    once, shared, siblings: rows are group-major; the `siblings` of a group share x_T and condition and explore from
    step `shared` - 1 on, so `once` predicts the first `shared` steps for one row a group, [R / siblings, ...]. None:
    `predict` predicts every row.
    guide, guided: rows marked in `guided` [R] bool take guide(x, k) + S_k z_k instead (teacher-guided siblings); their
    stored mean and density stay the policy's, so that the ratio at the behaviour weights is 1 for these rows too.
    Raises FloatingPointError if a latent is not finite.
    """
    latents, means, log_probs = [x], [], []
    for k in range(schedule.steps):
        if k < shared and once is not None:
            mean = transition_mean(once(x[::siblings], schedule[k]), schedule[k + 1], stds[k])
            mean = mean.repeat_interleave(siblings, 0)
        else:
            mean = transition_mean(predict(x, schedule[k]), schedule[k + 1], stds[k])
        action = mean
        if guide is not None and guided is not None:
            action = mean.clone()
            action[guided] = guide(x[guided], k)
        x = action + like(stds[k], x) * noise(k) if stds[k] > 0 else action
        means.append(mean)
        log_probs.append(log_prob(x, mean, stds[k]) if stds[k] > 0 else torch.zeros(len(x), device=x.device))
        latents.append(x)
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("the rollout made a latent that is not finite; lower learner.lr or check the teacher")
    return Episode(torch.stack(latents), torch.stack(means), torch.stack(log_probs))
