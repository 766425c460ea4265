"""Gymnasium environments over `Lanes`: one image, or many images whose network calls are one batch.

Action: Box(2), (logit of the fraction of the remaining half log-SNR, stop if above 0). Observation: see `Task.size`.
The vector environment resets a finished lane at its next step (gymnasium's next-step mode), as RLlib expects.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from redif_ray.adaptive.episodes import Lanes, Outcome, Task
from redif_ray.adaptive.observation import BOUND, LOGIT


def spaces(task: Task) -> tuple[Box, Box]:
    """Return the observation space and the action space of one image."""
    limit = np.array([LOGIT, LOGIT], dtype=np.float32)
    return Box(-BOUND, BOUND, (task.size,), np.float32), Box(-limit, limit, dtype=np.float32)


def _stepped(lanes: Lanes, actions: np.ndarray) -> Outcome:
    logits = np.clip(actions[:, 0].astype(np.float64), -LOGIT, LOGIT)
    return lanes.step(1 / (1 + np.exp(-logits)), actions[:, 1] > 0)


class DenoisingScheduleEnv(gym.Env[np.ndarray, np.ndarray]):
    """An environment with one image.

    `reset(seed=s)` starts the first image of the sequence of s; `reset()` starts the next image of the sequence.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, task: Task) -> None:
        self.lanes = Lanes(task, 1)
        self.observation_space, self.action_space = spaces(task)
        self.begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if seed is not None or not self.begun:
            self.begun = True
            return self.lanes.reset(seed or 0)[0], {}
        self.lanes.done[:] = True
        return _stepped(self.lanes, np.zeros((1, 2))).observations[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.lanes.done[0]:
            raise RuntimeError("the image is finished; call reset() first")
        outcome = _stepped(self.lanes, np.asarray(action)[None])
        return outcome.observations[0], float(outcome.rewards[0]), bool(outcome.done[0]), False, {}


class DenoisingScheduleVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """An environment with `num_envs` images, one in each lane."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

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
        outcome = _stepped(self.lanes, np.asarray(actions))
        return outcome.observations, outcome.rewards, outcome.done, np.zeros(self.num_envs, dtype=bool), {}
