"""The policy gradient at the student's output: its whole sampler is one Gaussian action.

    pi(x | x_T, c) = N(F_theta(x_T, c), S^2 I),    F_theta: the N deterministic steps of the student

The gradient of E R(x) with respect to theta is J_F^T g, with g the gradient of the smoothed reward at x_N, which reward
workers estimate (`learning.smoothing`). With c_N = -g / G for each of G groups, the steps are taken backwards one at a
time, so that memory is that of one network call:

    c_k = (d mean_theta(x_k, k) / d x_k)^T c_{k+1},    grad theta += (d mean_theta(x_k, k) / d theta)^T c_{k+1}
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from redif_ray.config import Term
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import DETERMINISTIC, transition_mean
from redif_ray.learning.gradients import AllReduce, Gradients
from redif_ray.learning.policy import CAUSES, Predict, RatioError
from redif_ray.learning.round_update import Learning
from redif_ray.learning.rounding import ratio_tolerance
from redif_ray.learning.step import idle_calls, microbatches, optimiser_step
from redif_ray.rewards.combine import weighted_sum


def ascent(
    gradients: Mapping[str, Tensor], spreads: Mapping[str, Tensor], terms: Mapping[str, Term]
) -> tuple[Tensor, dict[str, float]]:
    """Return the gradient of the weighted reward, sum_i w_i g_i / s_i, [G', *latent], and the spread of each term.

    gradients: of each term with a weight, for some groups. spreads: std of each term around the final image of every
    group of the round, [G]. s_i is 1, or the root mean square of the spreads where the term is normalised by `std`; a
    term that is equal everywhere then adds 0.
    """
    found = {name: float(values.double().square().mean().sqrt()) for name, values in spreads.items()}
    scales = {name: found[name] if terms[name].normalise == "std" else 1.0 for name in gradients}
    weights = {name: terms[name].weight / scale if scale else 0.0 for name, scale in scales.items()}
    return weighted_sum(gradients, weights), found


def chain(
    predict: Predict,
    schedule: Schedule,
    states: Tensor,
    encoded: dict[str, Tensor],
    cotangent: Tensor,
    gradients: Gradients,
    *,
    last: bool,
    through_steps: bool = True,
) -> Tensor:
    """Add the gradient of <F_theta(x_T), cotangent> to `gradients`; return the largest error of a mean.

    last: whether this is the last chain before an optimiser step. through_steps: False gives c_N to every step instead,
    as if the steps after it were the identity.
    states: x_0 .. x_N of the rollout, [N + 1, B, *latent]. cotangent: [B, *latent]. The error compares the mean of each
    step with the state that the rollout went on with: the largest mean square over a latent, [].
    """
    apart = states.new_zeros(())
    for k in reversed(range(schedule.steps)):
        x = states[k].detach().requires_grad_(through_steps and k > 0)
        mean = transition_mean(predict(x, schedule[k], encoded), schedule[k + 1], DETERMINISTIC)
        apart = torch.maximum(apart, (mean.detach() - states[k + 1]).square().flatten(1).mean(1).amax())
        gradients.add((mean * cotangent).sum(), last=last and k == 0)
        if x.grad is not None:
            cotangent = x.grad
    return apart


class OutputUpdater:
    """Takes one optimiser step on a round; the counterpart of `learning.update.Updater`.

    std: S. through_steps: as in `chain`. tolerance: largest |log ratio| of an action at the weights that made it.
    microbatch: groups of a backward pass. rank, world, all_reduce, sharded, loss_scale: as in `Updater`.
    """

    def __init__(
        self,
        predict: Predict,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        std: float,
        *,
        through_steps: bool = True,
        tolerance: float,
        microbatch: int,
        max_grad_norm: float,
        rank: int = 0,
        world: int = 1,
        all_reduce: AllReduce | None = None,
        sharded: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        self.predict, self.optimizer, self.schedule, self.std = predict, optimizer, schedule, std
        self.through_steps = through_steps
        self.tolerance, self.microbatch, self.max_grad_norm = tolerance, microbatch, max_grad_norm
        self.rank, self.world, self.all_reduce = rank, world, all_reduce
        self.sharded, self.loss_scale = sharded, loss_scale

    @classmethod
    def of(cls, learning: Learning, *, through_steps: bool = True) -> OutputUpdater:
        """Return the updater of a rank's student, with the settings of its configuration."""
        config = learning.config
        return cls(
            partial(learning.student.predict, guidance=config.student.guidance),
            learning.optimizer,
            learning.schedule,
            config.output.std,
            through_steps=through_steps,
            tolerance=ratio_tolerance(config),
            microbatch=config.learner.states_at_once,
            max_grad_norm=config.learner.max_grad_norm,
            rank=learning.rank,
            world=learning.world,
            all_reduce=learning.all_reduce,
            sharded=config.learner.fsdp and learning.world > 1,
            loss_scale=learning.loss_scale,
        )

    def run(
        self, states: Tensor, encoded: dict[str, Tensor], gradient: Tensor, *, total: int, round: int, lr: float
    ) -> dict[str, float]:
        """Train on a round; return its metrics, alike on every rank but for `seconds`.

        states: [N + 1, G', *latent] of this rank's groups. encoded: their conditions, [G', ...] each. gradient: of the
        reward at their images, [G', *latent]. total: groups of the whole round.
        Raises RatioError where the states are not those of the student's weights, and FloatingPointError for a gradient
        that is not finite.
        """
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        gradients = Gradients(self.optimizer, self.all_reduce, self.loss_scale)
        apart, parts = states.new_zeros(()), self._parts(len(gradient))
        for i, (rows, idle) in enumerate(parts, 1):
            cotangent = -gradient[rows] * (0.0 if idle else self.loss_scale / total)
            own = {name: value[rows] for name, value in encoded.items()}
            played = (self.predict, self.schedule, states[:, rows], own, cotangent, gradients)
            error = chain(*played, last=i == len(parts), through_steps=self.through_steps)
            apart = torch.maximum(apart, error)
        gradients.sum()
        sizes = torch.zeros(self.world, 2, dtype=torch.float64, device=states.device)
        sizes[self.rank, 0] = apart
        sizes[self.rank, 1] = gradient.double().square().flatten(1).mean(1).sqrt().sum() / total
        if self.all_reduce is not None:
            self.all_reduce([sizes])
        ratio = float(sizes[:, 0].amax()) / (2 * self.std**2)
        if not ratio <= self.tolerance:
            self.optimizer.zero_grad(set_to_none=True)
            raise RatioError(
                f"round {round}: |log ratio| of a fresh round is {ratio:.3g} before training; expected at most "
                f"{self.tolerance:g}. {CAUSES}"
            )
        losses = {"output": float(sizes[:, 1].sum())}
        norm = optimiser_step(gradients, losses, self.max_grad_norm, f"round {round}")
        calls = float(total * self.schedule.steps)
        return {
            "grad_norm": norm,
            "output_gradient": losses["output"],
            "fresh_log_ratio": ratio,
            "optimiser_steps": 1,
            "learning_rate": lr,
            "network_calls_forward": calls,
            "network_calls_backward": calls,
            "seconds": time.perf_counter() - started,
        }

    def _parts(self, count: int) -> list[tuple[slice, bool]]:
        """Return this rank's rows in microbatches, and then its idle calls, which True marks."""
        own = [(rows, False) for rows in microbatches(count, self.microbatch)]
        if not self.sharded or self.all_reduce is None:
            return own
        device = self.optimizer.param_groups[0]["params"][0].device
        return own + [(slice(0, 1), True)] * idle_calls(len(own), self.rank, self.world, self.all_reduce, device)
