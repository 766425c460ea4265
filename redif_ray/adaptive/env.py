"""The gymnasium vector environment over `Lanes`: many images whose network calls are one batch.

Action: Box(2), (logit of the fraction of the remaining half log-SNR, stop if above 0). Observation: see `Task.size`.
The environment resets a finished lane at its next step (gymnasium's next-step mode), as RLlib expects.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from redif_ray.adaptive.episodes import Lanes, Task
from redif_ray.adaptive.observation import BOUND, LOGIT


def spaces(task: Task) -> tuple[Box, Box]:
    """Return the observation space and the action space of one image."""
    limit = np.array([LOGIT, LOGIT], dtype=np.float32)
    return Box(-BOUND, BOUND, (task.size,), np.float32), Box(-limit, limit, dtype=np.float32)


class DenoisingScheduleVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """An environment with `num_envs` images, one in each lane."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, task: Task, num_envs: int) -> None:
        self.num_envs, self.lanes = num_envs, Lanes(task, num_envs)
        self.single_observation_space, self.single_action_space = spaces(task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self.lanes.reset(seed or 0), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions)  # RLlib passes a list of arrays
        logits = np.clip(actions[:, 0].astype(np.float64), -LOGIT, LOGIT)
        outcome = self.lanes.step(1 / (1 + np.exp(-logits)), actions[:, 1] > 0)
        return outcome.observations, outcome.rewards, outcome.done, np.zeros(self.num_envs, dtype=bool), {}
