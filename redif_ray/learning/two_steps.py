"""Regression of one step of the student on two steps: progressive distillation, and consistency.

    x_t = alpha_t x + sigma_t eps                                    x: the teacher's image, in latents
    loss = mean |step(x_t; t -> s) - step'(step''(x_t; t -> u); u -> s)|^2,      t > u >= s

with deterministic steps (DDIM), the student's on the left. Where u = s, there is no second step on the right. At the
first level of the schedule x_t is sigma_t eps, from which the student is sampled too. In progressive distillation both
steps on the right are those of an earlier student, or the teacher's at first (Salimans & Ho, arXiv 2202.00512). For
consistency the first is the teacher's, and the second that of an average of the student (Song et al., arXiv
2303.01469), up to the end of one of N segments (Heek et al., arXiv 2403.06807).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion import noise
from redif_ray.diffusion.levels import Level, NoiseProcess, like
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule, sub_schedule
from redif_ray.diffusion.transition import DETERMINISTIC, transition_mean
from redif_ray.learning.policy import Predict
from redif_ray.learning.regression import regress
from redif_ray.learning.round_update import Learning, Round
from redif_ray.learning.rounding import images_received


@dataclass(frozen=True, slots=True)
class Steps:
    """T steps, each from level t over u to s, stacked [T]. called: t, with the timestep of the student's call."""

    t: Level
    called: Level
    u: Level
    s: Level

    def __len__(self) -> int:
        return len(self.t.timestep)


def halved_steps(process: NoiseProcess, schedule: Schedule, parts: int) -> Steps:
    """Return the steps of a student that takes at most `parts` of them in each interval of its schedule, in halves.

    They are pairs of the steps of twice as many parts, the last of which may be alone where timesteps are discrete.
    """

    def each() -> Iterator[tuple[Level, Level, Level, Level]]:
        for k, inner in _inner(process, schedule, 2 * parts):
            for i in range(0, len(inner) - 1, 2):
                t, s = inner[i], inner[min(i + 2, len(inner) - 1)]
                yield t, schedule[k] if i == 0 else t, inner[i + 1], s

    return _stacked(each())


def segment_steps(process: NoiseProcess, schedule: Schedule, parts: int) -> Steps:
    """Return the steps to the end of each interval of a schedule, from at most `parts` levels in it, over the next."""

    def each() -> Iterator[tuple[Level, Level, Level, Level]]:
        for k, inner in _inner(process, schedule, parts):
            for i in range(len(inner) - 1):
                yield inner[i], schedule[k] if i == 0 else inner[i], inner[i + 1], inner[-1]

    return _stacked(each())


def _inner(process: NoiseProcess, schedule: Schedule, parts: int) -> Iterator[tuple[int, list[Level]]]:
    """Yield each interval of a schedule, by its number, with the levels that divide it, its ends included."""
    for k in range(schedule.steps):
        start, end = schedule.levels[k], schedule.levels[k + 1]
        divided = sub_schedule(process, start, end, DETERMINISTIC, parts).levels
        yield k, [divided[i] for i in range(len(divided.timestep))]


def _stacked(rows: Iterator[tuple[Level, Level, Level, Level]]) -> Steps:
    columns = zip(*rows, strict=True)
    return Steps(*(Level(*(torch.stack([getattr(v, n) for v in c]) for n in Level.__slots__)) for c in columns))


def drawn(
    groups: Sequence[int], steps: int, shape: Sequence[int], *, seed: int, round: int, draw: int
) -> tuple[Tensor, Tensor]:
    """Return noise [G, *shape] and the numbers of steps, of `steps`, [G] int64, which depend on the ids alone."""
    ids = {"seed": seed, "round": round, "step": draw}
    at = [int(steps * noise.uniform(1, Stream.NOISED, group=g, sibling=1, **ids)[0]) for g in groups]
    eps = noise.rows(groups, [0] * len(groups), shape, Stream.NOISED, "cpu", **ids)
    return eps, torch.tensor(at)


@dataclass(frozen=True, slots=True)
class Taught:
    """The networks that take the two steps.

    starts: t with the timesteps of the first one's calls, [T]: `Steps.t` for the teacher, `Steps.called` for a student.
    costs: of a call of each, in calls of the student. during: the context in which both are called.
    """

    first: Predict
    second: Predict
    starts: Level
    costs: tuple[float, float]
    during: Callable[[], AbstractContextManager[None]] = nullcontext

    def calls(self, steps: Steps, at: Tensor) -> float:
        """Return the cost of both steps for all rows."""
        return self.costs[0] * len(at) + self.costs[1] * len(_left(steps, at))


@torch.no_grad()
def endpoint(taught: Taught, x: Tensor, steps: Steps, at: Tensor, encoded: dict[str, Tensor]) -> Tensor:
    """Return x_s after two steps from x = x_t [B, *latent]. at: numbers of the steps, [B] int64."""
    x = transition_mean(taught.first(x, taught.starts[at], encoded), steps.u[at], DETERMINISTIC)
    if len(left := _left(steps, at)):
        own = {name: value[left] for name, value in encoded.items()}
        x[left] = transition_mean(taught.second(x[left], steps.u[at[left]], own), steps.s[at[left]], DETERMINISTIC)
    return x


def _left(steps: Steps, at: Tensor) -> Tensor:
    """Return the rows that have a second step to take, int64."""
    return torch.nonzero(steps.u[at].half_log_snr < steps.s[at].half_log_snr).flatten()


class TwoStepUpdater:
    """Takes the optimiser steps of a round on this rank's images; the counterpart of `learning.update.Updater`.

    round: its parts are the teacher's images.
    """

    def __init__(self, learning: Learning, round: Round, steps: Steps, taught: Taught) -> None:
        self.learning, self.round, self.steps, self.taught = learning, round, steps, taught
        self.started = time.perf_counter()
        units = {metas[0].unit.index: metas[0].unit for metas in round.metas}
        self.total, held, student = sum(unit.rows for unit in units.values()), sorted(round.parts), learning.student
        self.groups = [g for index in held for g in units[index].groups]
        self.rows = torch.arange(len(self.groups)).split(learning.config.learner.states_at_once)
        images = images_received(np.concatenate([round.parts[index][0] for index in held]))
        self.clean = torch.cat([student.encode_images(images[r].to(student.device)) for r in self.rows])
        encoded = student.encode([c for index in held for c in units[index].conditions])
        self.encoded = [{name: value[r] for name, value in encoded.items()} for r in self.rows]
        self.predict = partial(student.predict, guidance=learning.config.student.guidance)

    def run(self, draws: int, lr: float, after: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Take `draws` optimiser steps, each with new noise; return metrics. after: is called after each.

        Raises FloatingPointError where the loss or a gradient is not finite.
        """
        learning = self.learning
        for group in learning.optimizer.param_groups:
            group["lr"] = lr
        sums = torch.zeros(2, dtype=torch.float64, device=self.clean.device)  # of losses, of calls
        norms = []
        for draw in range(draws):
            loss, norm, calls = self._step(draw)
            sums += torch.tensor([loss, calls], dtype=torch.float64, device=sums.device)
            norms.append(norm)
            after()
        if learning.all_reduce is not None:
            learning.all_reduce([sums])
        trained = float(draws * self.total)
        return {
            "loss": float(sums[0]) / draws,
            "grad_norm": float(np.mean(norms)),
            "optimiser_steps": draws,
            "learning_rate": lr,
            "network_calls_forward": float(sums[1]) + trained,
            "network_calls_backward": trained,
            "seconds": time.perf_counter() - self.started,
        }

    def _step(self, draw: int) -> tuple[float, float, float]:
        """Take an optimiser step; return this rank's share of the loss, the gradient norm, and the cost of targets."""
        learning, steps, config = self.learning, self.steps, self.learning.config
        ids = {"seed": config.run.seed, "round": self.round.number, "draw": draw}
        eps, at = drawn(self.groups, len(steps), learning.student.latent_shape, **ids)
        t, eps = steps.t[at], eps.to(self.clean)
        shown = t.alpha * (at > 0)  # step 0 begins at the first level
        x = like(shown, eps) * self.clean + like(t.sigma, eps) * eps
        batches = list(zip(self.rows, self.encoded, strict=True))
        with self.taught.during():
            ends = [endpoint(self.taught, x[r], steps, at[r], own) for r, own in batches]

        def losses(i: int) -> Tensor:
            r, own = batches[i]
            mean = transition_mean(self.predict(x[r], steps.called[at[r]], own), steps.s[at[r]], DETERMINISTIC)
            return (mean - ends[i]).square().flatten(1).mean(1)

        where, parts = f"round {self.round.number}, draw {draw}", range(len(batches))
        loss, norm = regress(
            learning, learning.optimizer, losses, parts, total=self.total, name="regression", where=where
        )
        return loss, norm, self.taught.calls(steps, at)
