"""The update of a round: from trajectories and advantages to new weights, by the loss of `objective.py`.

Every minibatch is a set of (trajectory, step) pairs of the whole round, in an order that depends on (seed, round,
epoch) alone. Each rank works on the pairs whose rows it holds, in microbatches of their states, and divides by the size
of the whole minibatch; so neither the number of ranks nor the size of a microbatch changes the gradient beyond
rounding. Siblings share their first states: such a state is predicted, and differentiated, once for all of them.

Ranks that shard a network (FSDP) must call it equally often, because they gather it together: a rank that has fewer
microbatches makes idle calls, of one state and no pair, whose gradient is 0.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from redif_ray.config import Learner, WarmStart
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.gradients import AllReduce, Gradients
from redif_ray.learning.objective import Loss, Objective
from redif_ray.learning.policy import (
    IDLE,
    NONE,
    Parts,
    Predict,
    States,
    check_ratio,
    checked_rows,
    policy_mean,
    replayed,
    states,
)
from redif_ray.learning.step import idle_calls, optimiser_step, values_of

LOSS_PARTS = ("policy", "regulariser", "anchor")  # parts of the loss, in the order of `Loss.parts`
RATIOS = ("deviation", "deviation_square", "clipped", "kl")  # sums over a round's ratios, for metrics


class Updater:
    """Runs the updates of a phase. Its whole state is in the network and the optimiser.

    predict: the student, guided as in the rollout and in eval mode (dropout would move the ratio). The optimiser's
        parameters are the ones that train.
    schedule, stds: those of the rollout, S [N] float64. With S = 0 throughout there is no policy gradient and only the
        anchor trains, which is the warm start: see `regression_settings`.
    reference: policy that the regulariser pulls towards; needed unless its kind is none.
    all_reduce: sum over ranks; needed for `world` > 1. Every rank calls it equally often, whatever rows it holds.
    sharded: True where the networks are sharded over ranks, so that every rank must call them equally often.
    loss_scale: factor of the loss in the backward pass, so that 16-bit gradients do not underflow; undone before the
        optimiser step.
    rounds_apart: True where predictions change with the batch (see `rounding.py`), so that ratios to the rollout's log
        densities would differ from 1 by more than the clip range, at random. Ratios then refer to densities that the
        learner recomputes at the behaviour policy's weights, which costs a prediction of every state unless the round
        makes a single, on-policy step.
    """

    def __init__(
        self,
        predict: Predict,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        stds: Tensor,
        config: Learner,
        *,
        ratio_tolerance: float,
        reference: Predict | None = None,
        rank: int = 0,
        world: int = 1,
        all_reduce: AllReduce | None = None,
        sharded: bool = False,
        loss_scale: float = 1.0,
        rounds_apart: bool = False,
    ) -> None:
        if stds.shape != (schedule.steps,):
            raise ValueError(f"stds have shape {list(stds.shape)}; expected [{schedule.steps}], one a step")
        if config.regulariser.kind != "none" and reference is None:
            raise ValueError(f"learner.regulariser.kind={config.regulariser.kind} needs a reference policy; pass one")
        if world > 1 and all_reduce is None:
            raise ValueError(f"world={world} ranks need an all_reduce; pass one")
        self.predict, self.optimizer, self.schedule, self.stds, self.config = predict, optimizer, schedule, stds, config
        self.objective = Objective(schedule, stds, config, reference, sharded)
        self.steps, self.ratio_tolerance = self.objective.steps, ratio_tolerance
        self.rank, self.world, self.all_reduce, self.loss_scale = rank, world, all_reduce, loss_scale
        self.sharded, self.rounds_apart = sharded, rounds_apart

    def run(
        self,
        batch: RoundBatch,
        *,
        round: int,
        seed: int,
        lr: float,
        behaviour: AbstractContextManager[None] | None = None,
    ) -> dict[str, float]:
        """Train on a fresh round at learning rate `lr`; return metrics of the whole round, alike on every rank.

        behaviour: context in which the network has the weights that rolled out the round; None: it has them already.
        Metrics are means over pairs and optimiser steps. `ratio_*`, `clip_fraction` and `approx_kl` are the
        surrogate's, over stochastic pairs; `fresh_log_ratio_<k>` is the largest |log ratio| of step k before training.
        `network_calls_*` count predictions of one image (a guided prediction counts once here).
        Raises RatioError before training, and FloatingPointError before the optimiser step that would use bad numbers.
        """
        started = time.perf_counter()
        if self.config.anchor.weight > 0 and batch.anchors is None:
            raise ValueError(
                "learner.anchor.weight is above 0, but the round carries no anchors; return them from the phase's score"
            )
        self._check_rows(batch)
        self._check_states(batch)
        pairs = len(self.steps) * batch.total_rows
        minibatches = math.ceil(pairs / (self.config.minibatch or pairs))
        on_policy = behaviour is None and self.config.inner_epochs * minibatches == 1
        with behaviour or nullcontext():
            batch, fresh, checked = self._checked(batch, on_policy)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums: dict[str, float] = defaultdict(float, forward=checked)
        norms = []
        for epoch in range(self.config.inner_epochs):
            order = noise.permutation(pairs, Stream.MINIBATCH, seed=seed, round=round, group=epoch)
            parts = np.array_split(order, minibatches)
            for i, chosen in enumerate(parts):  # minibatch sizes differ by one pair at most
                where = f"round {round}, inner epoch {epoch}, minibatch {i} of {len(parts)}"
                norms.append(self._minibatch(batch, torch.from_numpy(chosen), sums, where))
        metrics = self._metrics(sums, fresh)
        return metrics | {
            "grad_norm": float(np.mean(norms)),
            "optimiser_steps": len(norms),
            "learning_rate": lr,
            "seconds": time.perf_counter() - started,
        }

    def _checked(self, batch: RoundBatch, on_policy: bool) -> tuple[RoundBatch, Tensor, int]:
        """Return (batch to train on, largest |log ratio| of each step, number of states predicted).

        The network must have the weights that rolled out the round.
        """
        count = len(batch.rows)
        rows = torch.arange(count) if self.rounds_apart and not on_policy else checked_rows(count)
        means, log_probs, predictions = replayed(
            self.predict, batch, self.schedule, self.stds, rows, self.config.states_at_once, self._in_step
        )
        fresh = check_ratio(log_probs, batch, self.stds, rows, self.ratio_tolerance)
        if self.rounds_apart:
            batch = replace(batch, on_policy=True) if on_policy else replace(batch, means=means, log_probs=log_probs)
        return batch, fresh, predictions

    def _check_rows(self, batch: RoundBatch) -> None:
        held = torch.bincount(batch.rows, minlength=batch.total_rows).to(batch.advantages)
        if self.all_reduce is not None:
            self.all_reduce([held])
        for row in torch.nonzero(held != 1).flatten().tolist():
            raise ValueError(f"row {row} of the round is held {int(held[row])} times; expected one rank to hold it")

    def _check_states(self, batch: RoundBatch) -> None:
        last = int(self.steps[-1])
        read = last + 1 + bool(self.stds[last] > 0)  # an action is the state after its step
        if len(batch.latents) < read:
            raise ValueError(f"the round carries {len(batch.latents)} states a row; the steps that train read {read}")

    def _in_step(self, parts: Parts) -> list[tuple[States, Tensor]]:
        """Append idle calls until every rank has as many parts as the rank that has the most."""
        own = list(parts)
        if not self.sharded or self.all_reduce is None:
            return own
        return own + [(IDLE, NONE)] * idle_calls(len(own), self.rank, self.world, self.all_reduce, self._device())

    def _device(self) -> torch.device:
        device: torch.device = self.optimizer.param_groups[0]["params"][0].device
        return device

    def _minibatch(self, batch: RoundBatch, chosen: Tensor, sums: dict[str, float], where: str) -> float:
        """Take one optimiser step on the pairs `chosen` of the whole round; return the gradient norm."""
        local = torch.full((batch.total_rows,), -1)
        local[batch.rows] = torch.arange(len(batch.rows))
        rows, steps = local[chosen // len(self.steps)], self.steps[chosen % len(self.steps)]
        rows, steps = rows[rows >= 0], steps[rows >= 0]
        gradients, tallies = Gradients(self.optimizer, self.all_reduce, self.loss_scale), []
        parts = self._in_step(states(batch, rows, steps).split(self.config.states_at_once))
        for i, (part, pairs) in enumerate(parts, 1):
            mean = policy_mean(self.predict, batch, self.schedule, self.stds, part)
            loss = self.objective(batch, mean, rows[pairs], steps[pairs])
            gradients.add(loss.total / len(chosen) * self.loss_scale, last=i == len(parts))
            sums["forward"] += len(part) + loss.reference_calls
            sums["backward"] += len(part)
            sums["stochastic"] += 0 if loss.surrogate is None else len(loss.surrogate.log_ratio)
            tallies.append(_tally(loss))
        found = values_of(tallies)
        losses = {name: sum(tally[i] for tally in found) for i, name in enumerate(LOSS_PARTS)}
        for name, value in losses.items():
            sums[f"loss_{name}"] += value
        for tally in found:
            *ratios, largest = tally[len(LOSS_PARTS) :]
            for name, value in zip(RATIOS, ratios, strict=True):
                sums[name] += value
            sums["deviation_max"] = max(sums["deviation_max"], largest)
        sums["pairs"] += len(rows)
        return optimiser_step(gradients, losses, self.config.max_grad_norm, where)

    def _metrics(self, sums: dict[str, float], fresh: Tensor) -> dict[str, float]:
        names = (
            "pairs",
            "forward",
            "backward",
            "stochastic",
            "loss_policy",
            "loss_regulariser",
            "loss_anchor",
            "deviation",
            "deviation_square",
            "clipped",
            "kl",
        )
        table = torch.zeros(self.world, len(names) + 1 + len(fresh), dtype=torch.float64, device=self._device())
        own = [*(sums[n] for n in names), sums["deviation_max"], *fresh.tolist()]
        table[self.rank] = torch.tensor(own, dtype=torch.float64)
        if self.all_reduce is not None:
            self.all_reduce([table])  # each rank fills its own row, so a sum also gathers the maxima
        total = dict(zip(names, table.sum(0).tolist(), strict=False))
        largest = table.amax(0)[len(names) :].tolist()
        metrics = {name: total[name] / total["pairs"] for name in names if name.startswith("loss_")}
        metrics["loss"] = sum(metrics.values())
        metrics |= {"network_calls_forward": total["forward"], "network_calls_backward": total["backward"]}
        count = total["stochastic"]
        if count:
            shift = total["deviation"] / count
            metrics |= {
                "ratio_mean": 1 + shift,
                "ratio_std": math.sqrt(max(0.0, total["deviation_square"] / count - shift**2)),
                "ratio_max_deviation": largest[0],
                "clip_fraction": total["clipped"] / count,
                "approx_kl": total["kl"] / count,
            }
            metrics |= {f"fresh_log_ratio_{k}": v for k, v in enumerate(largest[1:]) if self.stds[k] > 0}
        return metrics


def _tally(loss: Loss) -> Tensor:
    """Return the parts of a loss, the sums `RATIOS` and the largest deviation of a ratio from 1: [8] float64."""
    parts = [value.detach().double() for value in loss.parts.values()]
    if loss.surrogate is None:
        return torch.stack([*parts, *torch.zeros(len(RATIOS) + 1, dtype=torch.float64, device=parts[0].device)])
    log_ratio = loss.surrogate.log_ratio.double()
    deviation = torch.expm1(log_ratio)
    kl = (deviation - log_ratio).sum()  # rho - 1 - ln rho
    ratios = [deviation.sum(), deviation.square().sum(), loss.surrogate.clipped.sum().double(), kl]
    return torch.stack([*parts, *ratios, deviation.abs().max()]).detach()


def regression_settings(warm: WarmStart, learner: Learner) -> Learner:
    """Return the learner settings of the warm start, an `Updater` with S = 0: the anchor is the only loss."""
    return learner.model_copy(
        update={
            "minibatch": warm.minibatch,
            "inner_epochs": 1,
            "regulariser": learner.regulariser.model_copy(update={"kind": "none"}),
            "anchor": learner.anchor.model_copy(
                update={
                    "weight": 1.0,
                    "substeps": warm.substeps,
                    "loss": warm.loss,
                    "delta": warm.delta,
                    "gated": False,
                }
            ),
        }
    )
