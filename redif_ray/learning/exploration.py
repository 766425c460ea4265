"""At which steps of a round the policy explores, how much, and up to where siblings are one."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_ray.config import Config
from redif_ray.config.run import Exploration
from redif_ray.diffusion.schedules import Schedule


def explored_stds(schedule: Schedule, exploration: Exploration, round: int) -> Tensor:
    """Return S of each transition in a round of the policy, [N] float64; 0 where it does not explore.

    It explores at all steps or, with `exploration.one_step`, at one of them in turn.
    """
    stds = schedule.stds(exploration.eta, exploration.kind, exploration.last_step)
    if not exploration.one_step:
        return stds
    explored = torch.nonzero(stds).flatten()
    return stds.where(torch.arange(len(stds)) == explored[round % len(explored)], 0.0)


def shared_steps(config: Config, stds: Tensor) -> int:
    """Return at how many steps siblings share a state: up to the first that explores. Guided siblings part at once."""
    explored = torch.nonzero(stds).flatten().tolist()
    return 1 if config.rollout.guided or not explored else int(explored[0]) + 1
