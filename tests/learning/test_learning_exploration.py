"""Rounds that explore at one step alone: which, in turn, and how many states siblings then share."""

from __future__ import annotations

import pytest
import torch

from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.learning.exploration import explored_stds, shared_steps
from redif_ray.methods import phases_by_name
from redif_ray.models.registry import load_model
from redif_ray.planning import factory
from redif_ray.types import WorkUnit


def config(*overrides: str) -> Config:
    return load("smoke", ["student.steps=4", "exploration.eta=0.3", *overrides])


@pytest.mark.parametrize("last_step", [False, True])
def test_each_step_that_explores_has_its_rounds(last_step: bool) -> None:
    every = config(f"exploration.last_step={str(last_step).lower()}")
    alone = config(f"exploration.last_step={str(last_step).lower()}", "exploration.one_step=true")
    schedule = factory.student_schedule(load_model("fashion-mnist"), every.student)
    whole = explored_stds(schedule, every.exploration, 7)
    count = int((whole > 0).sum())
    assert count == (4 if last_step else 3)
    rounds = [explored_stds(schedule, alone.exploration, r) for r in range(5, 5 + count)]
    assert torch.equal(torch.stack(rounds).sum(0), whole) and all(int((s > 0).sum()) == 1 for s in rounds)
    assert torch.equal(explored_stds(schedule, alone.exploration, 5 + count), rounds[0])
    assert [shared_steps(alone, s) for s in rounds] == [int(torch.nonzero(s)) + 1 for s in rounds]
    assert shared_steps(every, whole) == 1
    for phase in phases_by_name(alone).values():
        explores = bool(phase.stds(schedule, 5).any())
        assert explores == (phase.name == "policy")


def test_guided_siblings_part_at_once() -> None:
    """They take the teacher's jump at steps that do not explore, too."""
    guided = config("rollout.guided=1")
    assert shared_steps(guided, torch.tensor([0.0, 0.1, 0.1, 0.0])) == 1
    assert shared_steps(config(), torch.tensor([0.0, 0.1, 0.1, 0.0])) == 2


def test_states_that_a_network_sees() -> None:
    unit = WorkUnit(0, 0, "policy", Stream.TRAIN, (0, 1, 2), (None,) * 3, 8)
    assert [unit.predictions(4, shared) for shared in (1, 2, 3, 4)] == [3 + 72, 6 + 48, 9 + 24, 12]
