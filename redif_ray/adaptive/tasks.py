"""The task of an agent, which every process builds from the configuration and the results of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from redif_ray.adaptive.episodes import Task
from redif_ray.config import Config
from redif_ray.diffusion.noise import Stream
from redif_ray.planning import factory
from redif_ray.rewards.base import RewardInputs, Rewards
from redif_ray.rewards.combine import weighted_sum
from redif_ray.types import Condition


@dataclass(frozen=True, slots=True)
class Goal:
    """The objective and the start of one agent.

    price: cost of a network call, in units of distance; steps, timesteps: N and the timesteps, noisiest first, of the
    static schedule that the agent starts as; max_calls: number of calls after which every image ends.
    """

    price: float
    steps: int
    timesteps: tuple[float, ...]
    max_calls: int


@dataclass(frozen=True, slots=True)
class Scorer:
    """Agreement with the teacher: the sum of weights x raw reward terms, which is minus the search's distance."""

    rewards: Rewards
    weights: dict[str, float]

    def __call__(self, images: Tensor, teacher: Tensor, conditions: list[Condition]) -> Tensor:
        terms = self.rewards(RewardInputs(images, teacher, conditions))
        return weighted_sum({name: value.double() for name, value in terms.items()}, self.weights)


def make_task(
    config: Config, goal: Goal, weights: dict[str, float], conditions: Sequence[Condition], targets: np.ndarray
) -> Task:
    """Return the training task of an agent, on the noises of `Stream.ADAPTIVE` and the device of the reward role.

    conditions, targets: one entry for each training noise; targets: float32 [M, C, H, W] in [0, 1].
    """
    device, student = factory.device(config.reward.gpus), config.search.student
    model = factory.teacher(config, device) if student is None else factory.model(config, student, device)
    return Task(
        model,
        config.student.guidance,
        Scorer(factory.rewards(config, model, device), weights),
        goal.price,
        goal.timesteps[0],
        goal.max_calls,
        Stream.ADAPTIVE,
        conditions,
        targets,
        config.run.seed,
    )
