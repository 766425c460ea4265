"""The student's policy on a round that was played: its means there, and the check that they are what they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import Prediction, log_prob, transition_mean
from redif_ray.errors import UserError
from redif_ray.learning.batch import RoundBatch

Predict = Callable[[Tensor, Level, dict[str, Tensor]], Prediction]  # x [P, ...], level [P], encoded conditions [P, ...]


class RatioError(UserError, RuntimeError):
    """A fresh round whose actions have another density under the learner's weights than they had in the rollout."""


def policy_mean(
    predict: Predict, batch: RoundBatch, schedule: Schedule, stds: Tensor, rows: Tensor, steps: Tensor
) -> Tensor:
    """Mean of the transition `steps` [P] from the state that `rows` [P] visited there: [P, ...]."""
    encoded = {name: value[rows] for name, value in batch.encoded.items()}
    prediction = predict(batch.latents[steps, rows], schedule.take(steps), encoded)
    return transition_mean(prediction, schedule.take(steps + 1), stds[steps])


CHECKED_ROWS = 16  # of a round: what moves a ratio (stale weights, guidance, dropout, dtype) moves every row's


@torch.no_grad()
def check_ratio(
    predict: Predict, batch: RoundBatch, schedule: Schedule, stds: Tensor, tolerance: float, microbatch: int
) -> Tensor:
    """Largest |log ratio| of each step, [N] float64 (0 where S = 0), of a fresh round at the weights that played it.

    At most `CHECKED_ROWS` rows are looked at, spread evenly over the batch: all rows would cost a third of the update.
    Raises RatioError where one is above `tolerance`, or is not a number.
    """
    largest = torch.zeros(len(stds), dtype=torch.float64)
    for step in torch.nonzero(stds > 0).flatten().tolist():
        for rows in checked_rows(len(batch.rows)).split(microbatch):
            steps = torch.full_like(rows, step)
            mean = policy_mean(predict, batch, schedule, stds, rows, steps)
            density = log_prob(batch.latents[step + 1, rows], mean, stds[steps])
            deviation = (density - batch.log_probs[step, rows]).abs().max().double().cpu()
            largest[step] = torch.maximum(largest[step], deviation)
        if not largest[step] <= tolerance:
            raise RatioError(
                f"step {step}: |log ratio| of a fresh round is {largest[step]:.3g} before training; expected at most "
                f"{tolerance:g}. Likely causes: the rollout used other weights, another guidance or schedule; dropout "
                "is on; latents were stored below float32; a compiled or differently batched kernel rounds otherwise "
                "(then raise guard.ratio_tolerance)"
            )
    return largest


def checked_rows(count: int) -> Tensor:
    """The rows of a batch of `count` that `check_ratio` looks at, int64."""
    return torch.linspace(0, count - 1, min(count, CHECKED_ROWS)).long()
