"""At which steps of a round the policy explores, how much, and up to where siblings are one."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_ray.config import Config
from redif_ray.diffusion.schedules import Schedule
from redif_ray.types import Phase


def phase_stds(schedule: Schedule, config: Config, phase: Phase, round: int) -> Tensor:
    """Return S of each transition in a round, [N] float64.

    Only the policy phase explores, at all steps or, with `exploration.one_step`, at one of them in turn.
    """
    if phase != "policy":
        return torch.zeros(schedule.steps, dtype=torch.float64)
    e = config.exploration
    stds = schedule.stds(e.eta, e.kind, e.last_step)
    if not e.one_step:
        return stds
    explored = torch.nonzero(stds).flatten()
    return stds.where(torch.arange(len(stds)) == explored[round % len(explored)], 0.0)


def shared_steps(config: Config, stds: Tensor) -> int:
    """Return at how many steps siblings share a state: up to the first that explores. Guided siblings part at once."""
    explored = torch.nonzero(stds).flatten().tolist()
    return 1 if config.rollout.guided or not explored else int(explored[0]) + 1
