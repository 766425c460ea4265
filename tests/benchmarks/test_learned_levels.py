"""Levels that are learned with the weights: their gradient beside finite differences, and a run that moves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.in_process import Run
from benchmarks.learned_levels import LearnedLevels, Leaves
from redif_ray.config import load
from redif_ray.diffusion import solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import DETERMINISTIC, transition_mean
from redif_ray.learning.gradients import Gradients
from redif_ray.learning.output import chain
from redif_ray.learning.step import make_optimizer
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import trainable
from redif_ray.planning import factory
from redif_ray.search.gradient import bounded, continuous


def test_the_gradient_of_the_levels_is_that_of_finite_differences() -> None:
    """The gradient is that of <F(x_T), g>, for a fixed g, to the logits of the increments and the timesteps' shifts."""
    torch.set_num_threads(1)
    config = load("smoke", ["student.steps=3"])
    student = factory.student(config, load_teacher(config.teacher))
    student.network.double()
    base = factory.student_schedule(student, config.student)
    draws = torch.Generator().manual_seed(0)
    noise, g = (torch.randn(2, *student.latent_shape, generator=draws, dtype=torch.float64) for _ in range(2))
    encoded = student.encode([0, 1])

    def schedule(moving: Tensor) -> Schedule:
        return continuous(student.process, base, moving[0], bounded(moving[1]))

    def states(of: Schedule) -> Tensor:
        visited = [solvers.initial(of, noise)]
        for k in range(of.steps):
            visited.append(transition_mean(student.predict(visited[-1], of[k], encoded), of[k + 1], DETERMINISTIC))
        return torch.stack(visited).detach()

    moving = torch.tensor([[0.1, -0.2, 0.05], [0.1, 0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    leaves = Leaves.of(schedule(moving), schedule(moving))
    gradients = Gradients(make_optimizer(trainable(student).values(), config.learner))
    chain(student.predict, leaves.schedule, states(leaves.schedule), encoded, g, gradients, last=True)
    leaves.backward()
    assert moving.grad is not None
    for index in [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]:
        values = []
        for sign in (1, -1):
            moved = moving.detach().clone()
            moved[index] += sign * 1e-4
            moved.requires_grad_(True)  # timesteps that need no gradient are rounded
            values.append(float((states(schedule(moved))[-1] * g).double().sum()))
        assert float(moving.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=0.03, abs=0.1), index


def test_a_round_moves_levels_and_weights_and_ends_on_rounded_levels(tmp_path: Path) -> None:
    output = ("method=output", "output={groups: 4, samples: 4}", "rollout={groups: 4, siblings: 1, unit_groups: 2}")
    given = (f"run.root={tmp_path}", "student.steps=3", "warm_start.rounds=0", "learner.rounds=2")
    run = Run(load("smoke", [*given, *output]))
    before, weights = run.loop.rollout.schedule.times.levels, run.loop.checksum()
    levels = LearnedLevels(run, rate=0.1)
    for round in range(2):
        levels.round(round)
    levels.deploy()
    times = run.loop.rollout.schedule.times
    assert run.loop.checksum() != weights and times.levels[0] == before[0]
    assert times.levels[1:] != before[1:] and times.network_timesteps not in (None, times.levels)
    assert all(time == round_ for time, round_ in zip(times.levels, map(float, map(int, times.levels)), strict=True))
