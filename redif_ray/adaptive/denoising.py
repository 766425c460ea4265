"""Denoising as a decision process: after each network call, an agent chooses how far to go next, or stops.

State: B images, each at a level of its own, and the network's prediction there. Action: the fraction f in (0, 1) of the
remaining half log-SNR at which the network is called next, lambda' = lambda + f (lambda_last - lambda); or stop. A move
is the deterministic transition (Euler, DDIM); stopping is the transition to the terminal level, without a network call.
So a static schedule of N levels is a policy with N calls, and produces the images of `solvers.euler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, NoiseProcess, VariancePreserving, like
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import DETERMINISTIC, Prediction, transition_mean

LEVEL = ("alpha", "sigma", "timestep")
NEAR = 1e-6  # share of the span of half log-SNR; a continuous process ends this close to the cleanest level


@dataclass(frozen=True, slots=True)
class Visit:
    """Images at which the network is called next.

    x: latents [B, ...]; level: their noise levels [B]; before: x0_hat [B, ...] of the previous call, 0 before the
    first; calls: network calls so far, int64 [B].
    """

    x: Tensor
    level: Level
    before: Tensor
    calls: Tensor


@dataclass(frozen=True, slots=True)
class State:
    """Images after a network call.

    level: noise levels [B] of the call; prediction: the network's, [B, ...]; before: x0_hat [B, ...] of the previous
    call, 0 at the first.
    """

    level: Level
    prediction: Prediction
    before: Tensor
    calls: Tensor  # int64 [B], network calls so far, this one included

    def take(self, rows: Tensor) -> State:
        """Return the images at `rows`, int64 [R]."""
        prediction = Prediction(self.prediction.x0[rows], self.prediction.eps[rows])
        return State(self.level[rows], prediction, self.before[rows], self.calls[rows])

    def put(self, rows: Tensor, new: State) -> State:
        """Return these images, with the images at `rows`, int64 [R], replaced by `new` [R]."""

        def merged(old: Tensor, other: Tensor) -> Tensor:
            return old.index_copy(0, rows.to(old.device), other)

        level = Level(*(merged(getattr(self.level, name), getattr(new.level, name)) for name in LEVEL))
        x0, eps = merged(self.prediction.x0, new.prediction.x0), merged(self.prediction.eps, new.prediction.eps)
        return State(level, Prediction(x0, eps), merged(self.before, new.before), merged(self.calls, new.calls))


def joined(visits: Sequence[Visit]) -> Visit:
    """Concatenate visits into one batch."""
    level = Level(*(torch.cat([getattr(v.level, name) for v in visits]) for name in LEVEL))
    x, before, calls = (torch.cat([getattr(v, name) for v in visits]) for name in ("x", "before", "calls"))
    return Visit(x, level, before, calls)


def start(unit_noise: Tensor, first: Level) -> Visit:
    """Return the first visit: `unit_noise` [B, ...] scaled to the scalar level `first`."""
    count = len(unit_noise)
    level = Level(first.alpha.expand(count), first.sigma.expand(count), first.timestep.expand(count))
    x = like(first.sigma, unit_noise) * unit_noise
    return Visit(x, level, torch.zeros_like(x), torch.zeros(count, dtype=torch.int64))


def move(process: NoiseProcess, state: State, fraction: Tensor) -> Visit:
    """Take images that are not `exhausted` to their next levels.

    fraction: share of the remaining half log-SNR, float [B] in (0, 1).
    """
    level = further(process, state.level, fraction)
    return Visit(transition_mean(state.prediction, level, DETERMINISTIC), level, state.prediction.x0, state.calls)


def call(predict: Predict, visit: Visit) -> State:
    """Call the network once for each image. Raises FloatingPointError where a prediction is not finite."""
    prediction = predict(visit.x, visit.level)
    if not bool(torch.isfinite(prediction.x0).all() and torch.isfinite(prediction.eps).all()):
        times = ", ".join(f"{t:g}" for t in visit.level.timestep.unique().tolist())
        raise FloatingPointError(f"a prediction at one of the timesteps {times} is not finite; check the weights")
    return State(visit.level, prediction, visit.before, visit.calls + 1)


def stop(process: NoiseProcess, state: State) -> Tensor:
    """Return the latents [B, ...] of images that stop in `state`."""
    return transition_mean(state.prediction, process.terminal(), DETERMINISTIC)


def further(process: NoiseProcess, level: Level, fraction: Tensor) -> Level:
    """Return the level that lies ahead of `level` by `fraction` of the remaining half log-SNR.

    A discrete process takes the nearest timestep that is cleaner than `level`, if there is one.
    """
    low, high = process.span
    current = level.half_log_snr.clamp(low, high)
    target = process.nearest(current + fraction.to(torch.float64) * (high - current))
    if isinstance(process, VariancePreserving):
        target = process.at(torch.minimum(target.timestep, level.timestep - 1).clamp(min=0))
    return target


def exhausted(process: NoiseProcess, level: Level) -> Tensor:
    """Tell, as bool [B], at which levels the process has no cleaner level left for a network call."""
    low, high = process.span
    if isinstance(process, VariancePreserving):
        return level.timestep == 0
    return level.half_log_snr >= high - NEAR * (high - low)


def fractions(process: NoiseProcess, schedule: Schedule) -> Tensor:
    """Return the fractions, float64 [N - 1], whose moves visit the levels of a static schedule."""
    low, high = process.span
    grid = schedule.levels.half_log_snr[:-1].clamp(low, high)
    return grid.diff() / (high - grid[:-1])


def position(process: NoiseProcess, level: Level) -> Tensor:
    """Return how far a level lies along the process's finite span of half log-SNR, in [0, 1]."""
    low, high = process.span
    return ((level.half_log_snr - low) / (high - low)).clamp(0, 1)
