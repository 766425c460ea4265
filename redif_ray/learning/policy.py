"""The student's policy at the states of a round: its means, and the check that they equal those of the rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transfer import picked, sent
from redif_ray.diffusion.transition import Prediction, log_prob, transition_mean
from redif_ray.errors import UserError
from redif_ray.learning.batch import RoundBatch

Predict = Callable[[Tensor, Level, dict[str, Tensor]], Prediction]  # x [P, ...], level [P], encoded conditions [P, ...]


CAUSES = (
    "Likely causes: the rollout used other weights, another guidance or schedule; dropout is on; latents were stored "
    "below float32; a compiled or differently batched kernel rounds otherwise (then raise guard.ratio_tolerance)"
)


class RatioError(UserError, RuntimeError):
    """The actions of a fresh round have another density under the learner's weights than in the rollout."""


@dataclass(frozen=True, slots=True)
class States:
    """The distinct states of P (trajectory, step) pairs, ordered by step and row, for the network to predict once each.

    rows, steps: [U] int64, position of each state in the batch. of: [P] int64, index of the state of each pair.
    """

    rows: Tensor
    steps: Tensor
    of: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, size: int) -> Iterator[tuple[States, Tensor]]:
        """Yield parts of at most `size` states, each with the indices [P'] int64 of the pairs that are in them."""
        order, ends = torch.argsort(self.of, stable=True), torch.bincount(self.of, minlength=len(self)).cumsum(0)
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            pairs = order[int(ends[start - 1]) if start else 0 : int(ends[stop - 1])]
            yield States(self.rows[start:stop], self.steps[start:stop], self.of[pairs] - start), pairs


Parts = Iterable[tuple[States, Tensor]]  # as `States.split` yields them
NONE = torch.zeros(0, dtype=torch.int64)
IDLE = States(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), NONE)  # one state and no pair


def states(batch: RoundBatch, rows: Tensor, steps: Tensor) -> States:
    """Return the distinct states of pairs, given by `rows` and `steps` [P].

    Siblings share the states of the first `batch.shared` steps: with 1, the usual case, a group of K siblings has
    1 + K (N - 1) states.
    """
    count = len(batch.rows)
    if batch.origin is not None:
        rows = torch.where(steps < batch.shared, batch.origin[rows], rows)
    distinct, of = torch.unique(steps * count + rows, return_inverse=True)
    return States(distinct % count, distinct // count, of)


def policy_mean(predict: Predict, batch: RoundBatch, schedule: Schedule, stds: Tensor, visited: States) -> Tensor:
    """Return the mean of the transition from the state of each pair, [P, ...]; each state is predicted once."""
    rows, steps = visited.rows, visited.steps
    encoded = {name: picked(value, rows) for name, value in batch.encoded.items()}
    prediction = predict(picked(batch.latents, steps, rows), schedule[steps], encoded)
    return picked(transition_mean(prediction, schedule[steps + 1], stds[steps]), visited.of)


CHECKED_ROWS = 16  # a sample suffices: stale weights, other guidance, dropout or dtype move the ratio of every row


@torch.no_grad()
def replayed(
    predict: Predict,
    batch: RoundBatch,
    schedule: Schedule,
    stds: Tensor,
    rows: Tensor,
    microbatch: int,
    in_step: Callable[[Parts], Parts] = list,
) -> tuple[Tensor, Tensor, int]:
    """Return (means [N, R', ...], log densities [N, R'] of the actions taken, number of states predicted) of R' `rows`.

    `predict` computes both at stochastic steps; where S = 0 they are 0.
    in_step: function that appends the idle calls for which other ranks wait.
    """
    means, predictions = batch.latents.new_zeros(len(stds), len(rows), *batch.latents.shape[2:]), 0
    log_probs = torch.zeros_like(batch.log_probs[:, rows])
    for step in torch.nonzero(stds > 0).flatten().tolist():
        for part, pairs in in_step(states(batch, rows, torch.full_like(rows, step)).split(microbatch)):
            mean = policy_mean(predict, batch, schedule, stds, part)
            predictions += len(part)
            if len(pairs):
                there = sent(pairs, means.device)
                means[step, there] = mean
                action, std = picked(batch.latents[step + 1], rows[pairs]), stds[step].expand(len(pairs))
                log_probs[step, there] = log_prob(action, mean, std)
    return means, log_probs, predictions


def check_ratio(log_probs: Tensor, batch: RoundBatch, stds: Tensor, rows: Tensor, tolerance: float) -> Tensor:
    """Return the largest |log ratio| of each step of a fresh round, [N] float64; 0 where S = 0.

    log_probs: [N, R'], log densities of `rows` from `replayed`, at the weights that rolled out the round.
    Raises RatioError where a value is above `tolerance` or not a number.
    """
    apart = (log_probs - batch.log_probs[:, rows]).abs().double().cpu()
    largest = apart.amax(1) if len(rows) else torch.zeros_like(stds)
    for step in torch.nonzero(stds > 0).flatten().tolist():
        if not largest[step] <= tolerance:
            raise RatioError(
                f"step {step}: |log ratio| of a fresh round is {largest[step]:.3g} before training; expected at most "
                f"{tolerance:g}. {CAUSES}"
            )
    return largest


def checked_rows(count: int) -> Tensor:
    """Return the evenly spread rows, of a batch of `count`, that the ratio check samples, int64.

    A check of all rows would cost a third of the update.
    """
    return torch.linspace(0, count - 1, min(count, CHECKED_ROWS)).long()
