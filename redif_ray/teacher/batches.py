"""The training examples of a small teacher, and its learning rate, as functions of the step."""

from __future__ import annotations

import math

import numpy as np
import torch

from redif_ray.data.images import ImageSet
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.teacher.config import TeacherConfig


def learning_rate(step: int, config: TeacherConfig) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


class Batches:
    """The training examples of step i, a pure function of (seed, i), so that a resumed run gets the same ones."""

    def __init__(self, images: ImageSet, config: TeacherConfig, alphas_cumprod: torch.Tensor) -> None:
        self.images, self.config, self.alphas_cumprod = images, config, alphas_cumprod
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def indices(self, step: int) -> np.ndarray:
        count, batch = len(self.images), self.config.batch
        rows = np.empty(batch, np.int64)
        for i, position in enumerate(range(step * batch, (step + 1) * batch)):
            epoch, offset = divmod(position, count)
            if self.order[0] != epoch:
                self.order = (epoch, noise.permutation(count, Stream.TEACHER_DATA, seed=self.config.seed, round=epoch))
            rows[i] = self.order[1][offset]
        return rows

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Return the batch of a step, by name.

        x: noisy images x_t, [B, C, H, W]. t: timesteps, [B] int64. labels: [B] int64; the last index means "no label".
        target: [B, C, H, W].
        """
        seed, batch = self.config.seed, self.config.batch
        rows = self.indices(step)
        x0 = torch.from_numpy(self.images.images[rows]).float() / 127.5 - 1
        eps = noise.normal(x0.numel(), Stream.TEACHER_NOISE, seed=seed, round=step)
        noise_image = torch.from_numpy(eps).reshape(x0.shape)
        # One level in each of B equal slices of [0, T) has the same expectation as uniform draws, and less variance.
        shift = noise.uniform(1, Stream.TEACHER_LEVEL, seed=seed, round=step)
        levels = (np.arange(batch) + shift) / batch
        t = torch.from_numpy((levels * len(self.alphas_cumprod)).astype(np.int64))
        alpha = self.alphas_cumprod[t].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas_cumprod[t]).sqrt()[:, None, None, None]
        labels = torch.zeros(batch, dtype=torch.int64)
        if self.images.labels is not None:
            labels = torch.from_numpy(self.images.labels[rows])
        drop = noise.uniform(batch, Stream.TEACHER_DROPOUT, seed=seed, round=step) < self.config.label_dropout
        labels = torch.where(torch.from_numpy(drop), max(1, len(self.images.classes)), labels)
        target = alpha * noise_image - sigma * x0 if self.config.parameterization == "v_prediction" else noise_image
        return {"x": alpha * x0 + sigma * noise_image, "t": t, "labels": labels, "target": target}
