"""Sampling with a trained agent, without RLlib: a batch of images, each of which stops by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redif_ray.adaptive import denoising, observation
from redif_ray.adaptive.policy import Policy
from redif_ray.diffusion.levels import Level, NoiseProcess
from redif_ray.diffusion.solvers import Predict

PredictOf = Callable[[Tensor], Predict]  # rows of the batch, int64 [R] -> the network under their conditions


@torch.no_grad()
def sample(
    process: NoiseProcess, predict_of: PredictOf, unit_noise: Tensor, first: Level, policy: Policy
) -> tuple[Tensor, Tensor]:
    """Sample with the policy's mean actions, without exploration.

    unit_noise: [B, ...]; first: scalar level of the first call. Returns latents [B, ...] and the network calls of each
    image, int64 [B].
    """
    max_calls = len(policy.table)
    latents, calls = torch.zeros_like(unit_noise), torch.zeros(len(unit_noise), dtype=torch.int64)
    rows, visit = torch.arange(len(unit_noise)), denoising.start(unit_noise, first)
    while True:
        state = denoising.call(predict_of(rows), visit)
        action = policy(observation.observe(process, state, max_calls)).double()
        over = (action[:, 1] > 0) | (state.calls >= max_calls) | denoising.exhausted(process, state.level)
        latents[rows[over]], calls[rows[over]] = denoising.stop(process, state)[over], state.calls[over]
        left = torch.nonzero(~over).flatten()
        if not len(left):
            return latents, calls
        rows = rows[left]
        visit = denoising.move(process, state.take(left), torch.sigmoid(action[left, 0]))
