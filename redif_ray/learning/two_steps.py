"""Regression of one step of the student on two steps: progressive distillation, and consistency.

    x_t = alpha_t x + sigma_t eps                                    x: the teacher's image, in latents
    loss = mean |step(x_t; t -> s) - step'(step''(x_t; t -> u); u -> s)|^2,      t > u >= s

with deterministic steps (DDIM), the student's on the left. Where u = s, the second step on the right is none. In
progressive distillation both steps on the right are those of an earlier student (Salimans & Ho, arXiv 2202.00512). For
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
from redif_ray.diffusion.transition import transition_mean
from redif_ray.learning.policy import Predict
from redif_ray.learning.round_update import Learning, Round
from redif_ray.learning.step import optimiser_step
from redif_ray.models.protocol import DiffusionModel

DETERMINISTIC = torch.zeros((), dtype=torch.float64)  # S of every step
Networks = tuple[Predict, Predict]  # that take the first and the second step


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
    """Return the steps of a student that takes at most `parts` of them in each interval of its schedule, in halves."""

    def each() -> Iterator[tuple[Level, Level, Level, Level]]:
        for k, inner in _inner(process, schedule, parts):
            for i in range(len(inner) - 1):
                t, s = inner[i], inner[i + 1]
                halves = sub_schedule(process, t, s, DETERMINISTIC, 2).levels
                yield t, schedule[k] if i == 0 else t, halves[1], s

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
    ids, size = {"seed": seed, "round": round, "step": draw}, int(np.prod(shape))
    at = [int(steps * noise.uniform(1, Stream.NOISED, group=g, sibling=1, **ids)[0]) for g in groups]
    eps = [torch.from_numpy(noise.normal(size, Stream.NOISED, group=g, **ids)) for g in groups]
    return torch.stack(eps).reshape(len(groups), *shape), torch.tensor(at)


@torch.no_grad()
def endpoint(networks: Networks, x: Tensor, t: Level, steps: Steps, at: Tensor, encoded: dict[str, Tensor]) -> Tensor:
    """Return x_s after two steps from x [B, *latent]. t: its levels, [B]. at: numbers of the steps, [B] int64."""
    first, second = networks
    x = transition_mean(first(x, t, encoded), steps.u[at], DETERMINISTIC)
    left = torch.nonzero(steps.u[at].half_log_snr < steps.s[at].half_log_snr).flatten()
    if len(left):
        own = {name: value[left] for name, value in encoded.items()}
        x[left] = transition_mean(second(x[left], steps.u[at[left]], own), steps.s[at[left]], DETERMINISTIC)
    return x


def predictor(model: DiffusionModel, guidance: float) -> Predict:
    """Return the model's prediction with guidance."""
    return partial(model.predict, guidance=guidance)


def run(
    learning: Learning,
    round: Round,
    steps: Steps,
    networks: Networks,
    *,
    draws: int,
    lr: float,
    earlier: Callable[[], AbstractContextManager[None]] = nullcontext,
    by_teacher: bool,
    after: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Take `draws` optimiser steps on a round's images, each with new noise; return metrics.

    round: its parts are the teacher's images. networks: those that take the two steps. earlier: the context in which
    they are called. by_teacher: whether the first is the teacher's, which the student's `network_timesteps` do not
    concern. after: is called after each optimiser step.
    Raises FloatingPointError where the loss or a gradient is not finite.
    """
    started, config, student, optimizer = time.perf_counter(), learning.config, learning.student, learning.optimizer
    for group in optimizer.param_groups:
        group["lr"] = lr
    units = {metas[0].unit.index: metas[0].unit for metas in round.metas}
    total = sum(unit.rows for unit in units.values())
    held = sorted(round.parts)
    groups = [g for index in held for g in units[index].groups]
    images = torch.from_numpy(np.concatenate([round.parts[index][0] for index in held])).float()
    parts = torch.arange(len(groups)).split(config.learner.states_at_once)
    clean = torch.cat([student.encode_images(images[r].to(student.device)) for r in parts])
    encoded = student.encode([c for index in held for c in units[index].conditions])
    own = [{name: value[r] for name, value in encoded.items()} for r in parts]
    predict = predictor(student, config.student.guidance)
    losses, norms = torch.zeros(draws, dtype=torch.float64), []
    for draw in range(draws):
        ids = {"seed": config.run.seed, "round": round.number, "draw": draw}
        eps, at = drawn(groups, len(steps), student.latent_shape, **ids)
        t = steps.t[at]
        x = like(t.alpha, clean) * clean + like(t.sigma, clean) * eps.to(clean)
        with earlier():
            t = (steps.t if by_teacher else steps.called)[at]
            ends = [endpoint(networks, x[r], t[r], steps, at[r], kept) for r, kept in zip(parts, own, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        for r, kept, end in zip(parts, own, ends, strict=True):
            mean = transition_mean(predict(x[r], steps.called[at[r]], kept), steps.s[at[r]], DETERMINISTIC)
            loss = (mean - end).square().flatten(1).mean(1).sum() / total
            (loss * learning.loss_scale).backward()
            losses[draw] += loss.item()
        where = f"round {round.number}, draw {draw}"
        named = {"regression": float(losses[draw])}
        norms.append(
            optimiser_step(
                optimizer, named, config.learner.max_grad_norm, where, learning.all_reduce, learning.loss_scale
            )
        )
        after()
    sums = losses.to(clean.device)
    if learning.all_reduce is not None:
        learning.all_reduce([sums])
    return {
        "loss": float(sums.mean()),
        "grad_norm": float(np.mean(norms)),
        "optimiser_steps": draws,
        "learning_rate": lr,
        "network_calls_forward": float(3 * draws * total),
        "network_calls_backward": float(draws * total),
        "seconds": time.perf_counter() - started,
    }
