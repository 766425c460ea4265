"""One update of a round: from trajectories and advantages to new weights, by the loss of `objective.py`.

Every minibatch is a set of pairs of the whole round, in an order that depends on (seed, round, epoch) alone. Each rank
works on the pairs whose rows it holds, in microbatches of the states they are in, and divides by the count of the whole
minibatch; so neither the number of ranks nor the size of a microbatch changes the gradient beyond rounding. Siblings
begin in one state: it is predicted, and differentiated, once for all of them. No other module knows of ranks.

Ranks that share out a network gather it together, so they call it equally often: one that has fewer microbatches makes
idle calls, of one state and no pair, whose gradient is 0.
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
from redif_ray.learning.losses import Surrogate
from redif_ray.learning.objective import Objective
from redif_ray.learning.policy import (
    IDLE,
    NONE,
    Parts,
    Predict,
    check_ratio,
    checked_rows,
    policy_mean,
    replayed,
    states,
)
from redif_ray.learning.step import AllReduce, optimiser_step


class Updater:
    """Runs the updates of a phase. All of its state is in the network and the optimiser.

    predict: the student, guided as in the rollout, in eval mode (dropout would move the ratio); what it trains are the
        optimiser's parameters.
    schedule, stds: as in the rollout, S [N] float64. With S = 0 throughout there is no policy gradient and the anchor
        alone trains, which is the warm start: see `regression_settings`.
    reference: the policy that the regulariser pulls towards, needed unless its kind is none.
    all_reduce: needed for `world` > 1. Every rank calls it equally often, whatever rows it holds.
    sharded: whether the networks are, and so must be called equally often by every rank.
    loss_scale: of the backward pass, undone before the step: what 16 bits would take for 0 stays a gradient.
    rounds_apart: whether the network rounds otherwise in other batches, so that ratios to what the rollout noted would
        differ from 1 by more than a clip range, at random. They then are to what the network itself makes of the round
        at the weights that played it, which costs a prediction of every state unless there is but one step to make.
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
            raise ValueError(f"learner.regulariser.kind={config.regulariser.kind} needs a reference policy")
        if world > 1 and all_reduce is None:
            raise ValueError(f"{world} ranks need an all_reduce")
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
        """Train on a fresh round at learning rate `lr`; returns metrics of the whole round, alike on every rank.

        behaviour: a block in which the network has the weights that played the round; None: they are its own.
        Means are over pairs and optimiser steps. `ratio_*`, `clip_fraction` and `approx_kl` are the surrogate's, over
        stochastic pairs; `fresh_log_ratio_<k>` is the largest |log ratio| of step k before training. `network_calls_*`
        count predictions of one image (a guided one is one here).
        Raises RatioError before training, FloatingPointError before the optimiser step in question.
        """
        started = time.perf_counter()
        if self.config.anchor.weight > 0 and batch.anchors is None:
            raise ValueError("learner.anchor.weight > 0, but the round carries no anchors")
        self._check_rows(batch)
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
            for i, chosen in enumerate(parts):  # equal to within one pair
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
        """The batch whose ratios are to be trained on; the largest |log ratio| of each step; states predicted for it.

        The network has the weights that played the round.
        """
        count = len(batch.rows)
        rows = torch.arange(count) if self.rounds_apart and not on_policy else checked_rows(count)
        means, log_probs, predictions = replayed(
            self.predict, batch, self.schedule, self.stds, rows, self.config.microbatch, self._in_step
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

    def _in_step(self, parts: Parts) -> Parts:
        """With as many idle calls as it takes to make those of the rank that has the most."""
        mine = list(parts)
        if not self.sharded or self.all_reduce is None:
            return mine
        counts = torch.zeros(self.world, device=self._device())
        counts[self.rank] = len(mine)
        self.all_reduce([counts])
        return mine + [(IDLE, NONE)] * (int(counts.max()) - len(mine))

    def _device(self) -> torch.device:
        device: torch.device = self.optimizer.param_groups[0]["params"][0].device
        return device

    def _minibatch(self, batch: RoundBatch, chosen: Tensor, sums: dict[str, float], where: str) -> float:
        """Gradients of the pairs `chosen` of the whole round, then one optimiser step; the gradient norm."""
        local = torch.full((batch.total_rows,), -1)
        local[batch.rows] = torch.arange(len(batch.rows))
        rows, steps = local[chosen // len(self.steps)], self.steps[chosen % len(self.steps)]
        rows, steps = rows[rows >= 0], steps[rows >= 0]
        self.optimizer.zero_grad(set_to_none=True)
        losses = dict.fromkeys(("policy", "regulariser", "anchor"), 0.0)
        for seen, pairs in self._in_step(states(batch, rows, steps).split(self.config.microbatch)):
            mean = policy_mean(self.predict, batch, self.schedule, self.stds, seen)
            loss = self.objective(batch, mean, rows[pairs], steps[pairs])
            loss.total.div(len(chosen)).mul(self.loss_scale).backward()
            sums["forward"] += len(seen) + loss.reference_calls
            sums["backward"] += len(seen)
            if loss.surrogate is not None:
                _tally(sums, loss.surrogate)
            for name, value in loss.parts.items():
                losses[name] += float(value.detach())
        for name, total in losses.items():
            sums[f"loss_{name}"] += total
        sums["pairs"] += len(rows)
        return optimiser_step(
            self.optimizer, losses, self.config.max_grad_norm, where, self.all_reduce, self.loss_scale
        )

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
        mine = [*(sums[n] for n in names), sums["deviation_max"], *fresh.tolist()]
        table[self.rank] = torch.tensor(mine, dtype=torch.float64)
        if self.all_reduce is not None:
            self.all_reduce([table])  # each rank fills its own row, so that maxima travel through a sum
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


def _tally(sums: dict[str, float], surrogate: Surrogate) -> None:
    deviation = torch.expm1(surrogate.log_ratio.double())
    sums["stochastic"] += len(deviation)
    sums["deviation"] += float(deviation.sum())
    sums["deviation_square"] += float(deviation.square().sum())
    sums["deviation_max"] = max(sums["deviation_max"], float(deviation.abs().max()))
    sums["clipped"] += float(surrogate.clipped.sum())
    sums["kl"] += float((deviation - surrogate.log_ratio.double()).sum())  # rho - 1 - ln rho


def regression_settings(warm: WarmStart, learner: Learner) -> Learner:
    """Return the learner's settings in the warm start: the anchor alone, for an `Updater` with S = 0."""
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
