"""DRaFT (Clark et al., arXiv 2309.17400): back-propagate a differentiable reward through the student's own sampler.

DRaFT is the control arm of the policy gradient: same student, schedule and reward, but it uses the reward's gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redif_ray.config import Config
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.solvers import initial
from redif_ray.diffusion.transition import DETERMINISTIC, transition_mean
from redif_ray.learning.gradients import AllReduce, Gradients
from redif_ray.learning.policy import Predict
from redif_ray.learning.rounding import images_received
from redif_ray.learning.step import microbatches, optimiser_step, values_of
from redif_ray.models.protocol import DiffusionModel
from redif_ray.rewards.base import RewardInputs, Rewards
from redif_ray.rewards.combine import weighted_sum
from redif_ray.types import Condition, WorkUnit


def draft_loss(
    predict: Predict,
    schedule: Schedule,
    x: Tensor,
    encoded: dict[str, Tensor],
    reward: Callable[[Tensor], Tensor],
    last_steps: int | None = None,
    *,
    recompute: bool = True,
) -> Tensor:
    """Return minus the reward of the deterministic sample from x = x_T [B, ...]: [B], differentiable.

    reward: differentiable function from final latents [B, ...] to [B]. last_steps: number k in 1..N of last steps that
    carry gradients (DRaFT-K in the paper); None: all N. recompute: whether these steps are recomputed in the backward
    pass, so that memory is that of one network call and not of k: N + k calls forward and not N, k backward.
    Raises ValueError for k outside 1..N, and for a reward that is not differentiable.
    """
    n = schedule.steps
    if last_steps is not None and not 1 <= last_steps <= n:
        raise ValueError(f"last_steps={last_steps}: expected a value in 1..{n}, the student's steps")
    first = 0 if last_steps is None else n - last_steps

    def step(x: Tensor, k: int) -> Tensor:
        return transition_mean(predict(x, schedule[k], encoded), schedule[k + 1], DETERMINISTIC)

    with torch.no_grad():
        for k in range(first):
            x = step(x, k)
    for k in range(first, n):
        x = checkpoint(step, x, k, use_reentrant=False, preserve_rng_state=False) if recompute else step(x, k)
    value = reward(x)
    if value.shape != x.shape[:1] or not value.requires_grad:
        raise ValueError(
            f"the reward has shape {list(value.shape)}; expected [{len(x)}], differentiable in the latents"
        )
    return -value


class DraftUpdater:
    """Takes the optimiser steps of DRaFT on the groups of a round; the counterpart of `learning.update.Updater`."""

    def __init__(
        self,
        student: DiffusionModel,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: Config,
        rewards: Rewards,
        *,
        all_reduce: AllReduce | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        rewards.require_differentiable("method=draft")
        self.student, self.optimizer, self.schedule, self.config = student, optimizer, schedule, config
        self.rewards, self.all_reduce, self.loss_scale = rewards, all_reduce, loss_scale

    def run(
        self, parts: Sequence[tuple[WorkUnit, np.ndarray | None]], *, total: int, round: int, lr: float
    ) -> dict[str, float]:
        """Train on a round; return its metrics.

        parts: this rank's work units, each with the teacher's images of its groups, or None where no term reads them.
        total: groups of the whole round.
        Every minibatch takes the next part of each rank's groups; gradients are divided by its count over all ranks.
        """
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        groups = [g for unit, _ in parts for g in unit.groups]
        conditions = [c for unit, _ in parts for c in unit.conditions]
        made = [images for _, images in parts if images is not None]
        targets = images_received(np.concatenate(made)) if made else None
        count = math.ceil(total / self.config.draft.minibatch)
        reward, norms = 0.0, []
        for i, rows in enumerate(torch.arange(len(groups)).tensor_split(count)):
            where = f"round {round}, minibatch {i} of {count}"
            gradients, sums = Gradients(self.optimizer, self.all_reduce, self.loss_scale), []
            own = microbatches(len(rows), self.config.learner.states_at_once)
            for microbatch in own:
                r = rows[microbatch]
                teacher = None if targets is None else targets[r].to(self.student.device)
                losses = self._losses([groups[j] for j in r], [conditions[j] for j in r], teacher)
                gradients.add(losses.sum() * count / total * self.loss_scale, last=microbatch is own[-1])
                sums.append(losses.detach().sum())
            loss = 0.0
            for part in values_of(sums):
                loss += part * count / total
                reward -= part
            norms.append(optimiser_step(gradients, {"draft": loss}, self.config.learner.max_grad_norm, where))
        n, k = self.schedule.steps, self.config.draft.last_steps or self.schedule.steps
        return {
            "reward": reward / len(groups),
            "grad_norm": float(np.mean(norms)),
            "optimiser_steps": len(norms),
            "learning_rate": lr,
            "seconds": time.perf_counter() - started,
            "network_calls_forward": float((n + k * self.config.draft.recompute) * total),
            "network_calls_backward": float(k * total),
        }

    def _losses(self, groups: Sequence[int], conditions: Sequence[Condition], teacher: Tensor | None) -> Tensor:
        student, config = self.student, self.config
        device = student.device
        shape, seed = student.latent_shape, config.run.seed
        unit_noise = noise.initial_noise(groups, shape, seed=seed, stream=Stream.TRAIN, device=device)

        def score(latents: Tensor) -> Tensor:
            raw = self.rewards(RewardInputs(student.images(latents), teacher, conditions))
            return weighted_sum(raw, config.reward.weights)

        predict = partial(student.predict, guidance=config.student.guidance)
        x, encoded = initial(self.schedule, unit_noise), student.encode(conditions)
        draft = config.draft
        return draft_loss(predict, self.schedule, x, encoded, score, draft.last_steps, recompute=draft.recompute)
