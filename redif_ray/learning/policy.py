"""The student's policy on a round that was played: its means there, and the check that they are what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class States:
    """What a network sees of (trajectory, step) pairs: each state once, in order of step and row.

    rows, steps: [U] int64, of each state. of: [P] int64, the state of each pair.
    """

    rows: Tensor
    steps: Tensor
    of: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, size: int) -> Iterator[tuple[States, Tensor]]:
        """Parts of at most `size` states, each with the pairs, [P'] int64, that it has all states of."""
        order, ends = torch.argsort(self.of, stable=True), torch.bincount(self.of, minlength=len(self)).cumsum(0)
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            pairs = order[int(ends[start - 1]) if start else 0 : int(ends[stop - 1])]
            yield States(self.rows[start:stop], self.steps[start:stop], self.of[pairs] - start), pairs


Parts = Iterable[tuple[States, Tensor]]  # of `States.split`
NONE = torch.zeros(0, dtype=torch.int64)
IDLE = States(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), NONE)  # one state, and no pair


def states(batch: RoundBatch, rows: Tensor, steps: Tensor) -> States:
    """Of pairs [P]: siblings share the first `batch.shared`, 1 as a rule: then a group of K has 1 + K (N - 1)."""
    count = len(batch.rows)
    if batch.origin is not None:
        rows = torch.where(steps < batch.shared, batch.origin[rows], rows)
    found, of = torch.unique(steps * count + rows, return_inverse=True)
    return States(found % count, found // count, of)


def policy_mean(predict: Predict, batch: RoundBatch, schedule: Schedule, stds: Tensor, seen: States) -> Tensor:
    """Mean of the transition from the state of each pair: [P, ...]."""
    rows, steps = seen.rows, seen.steps
    encoded = {name: value[rows] for name, value in batch.encoded.items()}
    prediction = predict(batch.latents[steps, rows], schedule[steps], encoded)
    return transition_mean(prediction, schedule[steps + 1], stds[steps])[seen.of]


CHECKED_ROWS = 16  # of a round: what moves a ratio (stale weights, guidance, dropout, dtype) moves every row's


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
    """The policy's means [N, R', ...] for R' `rows`, its log densities [N, R'] of the actions that were taken, and the
    states that were predicted for it. Where S = 0 they are those of the batch.

    in_step: adds the idle calls that other ranks wait for.
    """
    means, log_probs, predictions = batch.means[:, rows], batch.log_probs[:, rows], 0
    for step in torch.nonzero(stds > 0).flatten().tolist():
        for seen, pairs in in_step(states(batch, rows, torch.full_like(rows, step)).split(microbatch)):
            mean = policy_mean(predict, batch, schedule, stds, seen)
            predictions += len(seen)
            if len(pairs):
                means[step, pairs] = mean
                action, std = batch.latents[step + 1, rows[pairs]], stds[step].expand(len(pairs))
                log_probs[step, pairs] = log_prob(action, mean, std)
    return means, log_probs, predictions


def check_ratio(log_probs: Tensor, batch: RoundBatch, stds: Tensor, rows: Tensor, tolerance: float) -> Tensor:
    """Largest |log ratio| of each step, [N] float64 (0 where S = 0), of a fresh round at the weights that played it.

    log_probs: of `rows`, from `replayed`. Raises RatioError where one is above `tolerance`, or is not a number.
    """
    apart = (log_probs - batch.log_probs[:, rows]).abs().double().cpu()
    largest = apart.amax(1) if len(rows) else torch.zeros_like(stds)
    for step in torch.nonzero(stds > 0).flatten().tolist():
        if not largest[step] <= tolerance:
            raise RatioError(
                f"step {step}: |log ratio| of a fresh round is {largest[step]:.3g} before training; expected at most "
                f"{tolerance:g}. Likely causes: the rollout used other weights, another guidance or schedule; dropout "
                "is on; latents were stored below float32; a compiled or differently batched kernel rounds otherwise "
                "(then raise guard.ratio_tolerance)"
            )
    return largest


def checked_rows(count: int) -> Tensor:
    """Rows of a batch of `count`, spread evenly, that a check looks at, int64: all would cost a third of the update."""
    return torch.linspace(0, count - 1, min(count, CHECKED_ROWS)).long()
