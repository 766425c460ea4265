"""Denoising as a decision process: after each network call, how far to go next, or whether to stop.

State: B images, each at a level of its own, and what the network said there. Action: the fraction f in (0, 1) of the
half log-SNR that is left, lambda' = lambda + f (lambda_last - lambda), to the next call; or to stop. A move is the
deterministic transition (Euler, DDIM); to stop is to take the one to the terminal level, which needs no call. So any
static schedule of N levels is a policy with N calls, and makes the images of `solvers.euler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, NoiseProcess, VariancePreserving, like
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import Prediction, transition_mean

LEVEL = ("alpha", "sigma", "timestep")
NEAR = 1e-6  # of the span of half log-SNR: where a continuous process has nothing left to go

_NO_NOISE = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Visit:
    """`x` [B, ...] at `level` [B], where the network is to be called; `before` [B, ...]: x0_hat of the call before, and
    `calls` int64 [B]: how many there were. At the start there was none: `before` is 0.
    """

    x: Tensor
    level: Level
    before: Tensor
    calls: Tensor


@dataclass(frozen=True, slots=True)
class State:
    """After a network call: at `level` [B] the network predicts `prediction`, `before` it predicted [B, ...]."""

    level: Level
    prediction: Prediction
    before: Tensor
    calls: Tensor  # int64 [B], this one included

    def take(self, rows: Tensor) -> State:
        """The images at `rows`, int64 [R]."""
        prediction = Prediction(self.prediction.x0[rows], self.prediction.eps[rows])
        return State(self.level[rows], prediction, self.before[rows], self.calls[rows])

    def put(self, rows: Tensor, new: State) -> State:
        """These images, with those of `new` [R] at `rows`, int64 [R]."""

        def merged(mine: Tensor, other: Tensor) -> Tensor:
            return mine.index_copy(0, rows.to(mine.device), other)

        level = Level(*(merged(getattr(self.level, name), getattr(new.level, name)) for name in LEVEL))
        x0, eps = merged(self.prediction.x0, new.prediction.x0), merged(self.prediction.eps, new.prediction.eps)
        return State(level, Prediction(x0, eps), merged(self.before, new.before), merged(self.calls, new.calls))


def joined(visits: Sequence[Visit]) -> Visit:
    """All of these as one batch."""
    level = Level(*(torch.cat([getattr(v.level, name) for v in visits]) for name in LEVEL))
    x, before, calls = (torch.cat([getattr(v, name) for v in visits]) for name in ("x", "before", "calls"))
    return Visit(x, level, before, calls)


def start(unit_noise: Tensor, first: Level) -> Visit:
    """At the scalar level `first`, from `unit_noise` [B, ...]."""
    count = len(unit_noise)
    level = Level(first.alpha.expand(count), first.sigma.expand(count), first.timestep.expand(count))
    x = like(first.sigma, unit_noise) * unit_noise
    return Visit(x, level, torch.zeros_like(x), torch.zeros(count, dtype=torch.int64))


def move(process: NoiseProcess, state: State, fraction: Tensor) -> Visit:
    """To the next level. fraction: float [B], in (0, 1); of images that are not `exhausted`."""
    level = further(process, state.level, fraction)
    return Visit(transition_mean(state.prediction, level, _NO_NOISE), level, state.prediction.x0, state.calls)


def call(predict: Predict, visit: Visit) -> State:
    """One network call for each image. Raises FloatingPointError where a prediction is not finite."""
    prediction = predict(visit.x, visit.level)
    if not bool(torch.isfinite(prediction.x0).all() and torch.isfinite(prediction.eps).all()):
        times = ", ".join(f"{t:g}" for t in visit.level.timestep.unique().tolist())
        raise FloatingPointError(f"a prediction at one of the timesteps {times} is not finite; check the weights")
    return State(visit.level, prediction, visit.before, visit.calls + 1)


def stop(process: NoiseProcess, state: State) -> Tensor:
    """The latents [B, ...] of images that stop here."""
    return transition_mean(state.prediction, process.terminal(), _NO_NOISE)


def further(process: NoiseProcess, level: Level, fraction: Tensor) -> Level:
    """The level that lies `fraction` of what is left of half log-SNR ahead; on a discrete process, the nearest one to
    it that is cleaner than `level`, if there is one.
    """
    low, high = process.span
    here = level.half_log_snr.clamp(low, high)
    found = process.nearest(here + fraction.to(torch.float64) * (high - here))
    if isinstance(process, VariancePreserving):
        found = process.at(torch.minimum(found.timestep, level.timestep - 1).clamp(min=0))
    return found


def exhausted(process: NoiseProcess, level: Level) -> Tensor:
    """Where no level is left to call the network at, bool [B]."""
    low, high = process.span
    if isinstance(process, VariancePreserving):
        return level.timestep == 0
    return level.half_log_snr >= high - NEAR * (high - low)


def fractions(process: NoiseProcess, schedule: Schedule) -> Tensor:
    """The moves that follow a static schedule, float64 [N - 1]."""
    low, high = process.span
    grid = schedule.levels.half_log_snr[:-1].clamp(low, high)
    return grid.diff() / (high - grid[:-1])


def position(process: NoiseProcess, level: Level) -> Tensor:
    """How far along its finite span of half log-SNR a level is, in [0, 1]."""
    low, high = process.span
    return ((level.half_log_snr - low) / (high - low)).clamp(0, 1)
