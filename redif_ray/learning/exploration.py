"""The steps of a round at which the policy explores, its noise there, and the steps that siblings share."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_ray.config import Config
from redif_ray.config.run import Exploration
from redif_ray.diffusion.schedules import Schedule


def explored_stds(schedule: Schedule, exploration: Exploration, round: int) -> Tensor:
    """Return the std S of each transition in a round of the policy, [N] float64; 0 where it does not explore.

    The policy explores at all steps or, with `exploration.one_step`, at one step, the next one in each round.
    """
    stds = schedule.stds(exploration.eta, exploration.kind, exploration.last_step)
    if not exploration.one_step:
        return stds
    explored = torch.nonzero(stds).flatten()
    return stds.where(torch.arange(len(stds)) == explored[round % len(explored)], 0.0)


def shared_steps(config: Config, stds: Tensor) -> int:
    """Return the number of first steps at which siblings share a state: through the first step that explores.

    With teacher-guided siblings it is 1, since these differ from the first step on.
    """
    explored = torch.nonzero(stds).flatten().tolist()
    return 1 if config.rollout.guided or not explored else int(explored[0]) + 1
