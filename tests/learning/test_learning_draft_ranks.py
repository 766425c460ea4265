"""DRaFT on ranks of which one holds fewer groups than a round has minibatches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thread_ranks import run_ranks
from torch import Tensor

from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.learning.draft import DraftUpdater
from redif_ray.learning.gradients import AllReduce
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student, trainable
from redif_ray.planning import factory
from redif_ray.types import WorkUnit


@pytest.mark.slow
def test_a_rank_without_groups_in_a_minibatch_takes_part_in_its_sum() -> None:
    config: Config = load("smoke", ["method=draft", "draft.minibatch=1", "draft.groups=3"])
    students = [make_student(load_model("fashion-mnist"), config.student.lora) for _ in range(2)]

    def rank(number: int, all_reduce: AllReduce) -> dict[str, Tensor]:
        student = students[number]
        weights = trainable(student)
        optimizer = torch.optim.SGD(weights.values())
        schedule = factory.student_schedule(student, config.student)
        rewards = factory.rewards(config, student, "cpu")
        groups = ((0, 1), (2,))[number]
        unit = WorkUnit(0, number, "draft", Stream.TRAIN, groups, tuple(g % 10 for g in groups))
        images = np.full((len(groups), *student.image_shape), 0.5, np.float32)
        updater = DraftUpdater(student, optimizer, schedule, config, rewards, all_reduce=all_reduce)
        metrics = updater.run([(unit, images)], total=3, round=0, lr=0.01)
        assert metrics["optimiser_steps"] == 3 and metrics["grad_norm"] > 0
        return {name: weight.detach().clone() for name, weight in weights.items()}

    before = {name: weight.detach().clone() for name, weight in trainable(students[0]).items()}
    first, second = run_ranks(rank)
    assert all(torch.equal(first[name], second[name]) for name in before)
    assert any(not torch.equal(first[name], before[name]) for name in before)
