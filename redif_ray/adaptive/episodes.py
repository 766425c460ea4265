"""Episodes of the agent: many images at once, in lanes; a lane whose image is finished starts its next image.

The reward is -1 for each network call and, when an image is finished, its agreement with the teacher's image, both in
units of the price of a call: an episode's rewards sum to (agreement - price x NFE) / price. Rewarding the gain of each
call would give the same sum minus the agreement of the first x0_hat, which is noise to the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redif_ray.adaptive import denoising, observation
from redif_ray.adaptive.critic import squeezed
from redif_ray.adaptive.denoising import State
from redif_ray.diffusion import noise
from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.noise import Stream
from redif_ray.models.protocol import DiffusionModel
from redif_ray.types import Condition

# (images [B, C, H, W], the teacher's images, their conditions) -> agreement [B], higher is better
Agreement = Callable[[Tensor, Tensor, list[Condition]], Tensor]


@dataclass(frozen=True)
class Task:
    """The settings that all episodes share.

    The noises are groups 0 to M - 1 of `stream`; each has an entry in `conditions` and in `targets`.
    """

    model: DiffusionModel
    guidance: float
    agreement: Agreement
    price: float  # cost of a network call of one image, in units of agreement
    first: float  # timestep of the first call
    max_calls: int  # at least 2
    stream: Stream
    conditions: Sequence[Condition]
    targets: np.ndarray  # [M, C, H, W] in [0, 1]
    seed: int

    @property
    def size(self) -> int:
        """Length of an observation: the entries of `observation.observe`, then the agreement so far for the critic."""
        return observation.size(self.model.latent_shape[0], self.max_calls) + 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a step, for each lane.

    observations: float32 [B, F]; rewards: float32 [B]; done: bool [B], true where the image is finished.
    """

    observations: np.ndarray
    rewards: np.ndarray
    done: np.ndarray


class Lanes:
    """A batch of `count` lanes. The k-th image of a lane is a function of (task.seed, salt, lane, k) alone."""

    def __init__(self, task: Task, count: int) -> None:
        self.task, self.count = task, count
        self.process = task.model.process
        self.first: Level = self.process.at(torch.tensor(task.first, dtype=torch.float64))
        self.done = np.ones(count, dtype=bool)

    def reset(self, salt: int = 0) -> np.ndarray:
        """Start every lane with its first image. Returns observations [B, F]."""
        self.salt, self.begun, self.groups = salt, [0] * self.count, [0] * self.count
        self.done = np.ones(self.count, dtype=bool)
        self.agreed, self.owed = np.zeros(self.count), np.zeros(self.count)
        self.state: State | None = None
        return self.step(np.zeros(self.count), self.done).observations

    def step(self, fraction: np.ndarray, stop: np.ndarray) -> Outcome:
        """Act in every lane; a lane whose image is finished starts its next image instead, with reward 0.

        fraction: share of the remaining half log-SNR, float [B] in (0, 1); stop: bool [B].
        """
        fresh = self.done
        stops, goes = ~fresh & stop, ~fresh & ~stop
        for lane in np.flatnonzero(fresh):
            self.groups[lane] = self._next_group(int(lane))
        self._call(np.flatnonzero(fresh), np.flatnonzero(goes), torch.from_numpy(np.asarray(fraction, np.float64)))
        assert self.state is not None
        last = self.state.calls.numpy() >= self.task.max_calls
        last |= denoising.exhausted(self.process, self.state.level).numpy()
        self.done = stops | (goes & last)
        rewards = np.where(fresh, 0.0, -self.owed - goes) + np.where(self.done, self.agreed / self.task.price, 0.0)
        self.owed = fresh.astype(float)  # the first action pays for the first call
        return Outcome(self._observed(), rewards.astype(np.float32), self.done.copy())

    def _next_group(self, lane: int) -> int:
        count = len(self.task.conditions)
        at = noise.uniform(1, Stream.EPISODE, seed=self.task.seed, group=self.salt, sibling=lane, step=self.begun[lane])
        self.begun[lane] += 1
        return int(at[0] * count)

    @torch.no_grad()
    def _call(self, fresh: np.ndarray, goes: np.ndarray, fraction: Tensor) -> None:
        """Call the network once, on one batch of the images that start and the images that move on."""
        task, rows = self.task, torch.from_numpy(np.concatenate([fresh, goes]))
        if not len(rows):
            return
        visits = []
        if len(fresh):
            groups = [self.groups[lane] for lane in fresh]
            model = task.model
            unit = noise.initial_noise(
                groups, model.latent_shape, seed=task.seed, stream=task.stream, device=model.device
            )
            visits.append(denoising.start(unit, self.first))
        if len(goes):
            assert self.state is not None
            lanes = torch.from_numpy(goes)
            visits.append(denoising.move(self.process, self.state.take(lanes), fraction[lanes]))
        conditions = [task.conditions[self.groups[lane]] for lane in rows.tolist()]
        predict = task.model.predictor(task.model.encode(conditions), task.guidance)
        new = denoising.call(predict, denoising.joined(visits))
        targets = torch.from_numpy(task.targets[[self.groups[lane] for lane in rows.tolist()]]).to(task.model.device)
        images = task.model.images(denoising.stop(self.process, new))
        self.agreed[rows.numpy()] = task.agreement(images, targets, conditions).double().cpu().numpy()
        self.state = new if self.state is None else self.state.put(rows, new)

    def _observed(self) -> np.ndarray:
        assert self.state is not None
        observed = observation.observe(self.process, self.state, self.task.max_calls).numpy()
        agreement = squeezed(self.agreed / self.task.price)[:, None]
        return np.concatenate([observed, agreement], 1).astype(np.float32)
