"""Contrast of the student's own images, noised anew (DiffusionNFT, Zheng et al., arXiv 2509.16117).

    x_t = alpha_t x + sigma_t eps                                       x: an image of the student, A: its advantage
    loss = r |D(x_t) - x|^2 + (1 - r) |2 D_old(x_t) - D(x_t) - x|^2,    r = (1 + A) / 2

with D the student's prediction of the clean image at a level of its schedule, and D_old that of an average of earlier
students. Images that were better than others of their condition draw the prediction towards themselves, worse ones push
it away. With d = D - D_old the loss is |d|^2 + 2 A <d, D_old - x> and a constant: a policy gradient's weights on a
regression, with a pull towards the earlier student. No density of a trajectory is needed, so the sampler may be
deterministic, and images explore by the noises that they start from, which decide what is in them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, like
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.matching import denoising_loss
from redif_ray.learning.regression import regress
from redif_ray.learning.round_update import Learning
from redif_ray.learning.step import microbatches
from redif_ray.learning.two_steps import drawn


def contrast_loss(denoised: Tensor, earlier: Tensor, x: Tensor, level: Level, advantage: Tensor) -> Tensor:
    """Return the loss of each row, [B].

    denoised, earlier: D and D_old at x_t, [B, *latent]. x: the images. advantage: A in [-1, 1], [B].
    """
    better = ((1 + advantage) / 2).to(x)
    towards, away = denoising_loss(denoised, x, level), denoising_loss(2 * earlier - denoised, x, level)
    return better * towards + (1 - better) * away


class ContrastUpdater:
    """Takes the optimiser steps of a round on this rank's images.

    batch: the round, whose last latents are the images. groups: of each row.
    """

    def __init__(self, learning: Learning, batch: RoundBatch, groups: Sequence[int], round: int) -> None:
        self.learning, self.batch, self.groups, self.round = learning, batch, groups, round
        self.predict = partial(learning.student.predict, guidance=learning.config.student.guidance)
        self.advantage = batch.advantages / learning.config.learner.advantage_clip
        self.rows = microbatches(len(groups), learning.config.learner.states_at_once)

    def run(self, draws: int, lr: float) -> dict[str, float]:
        """Take `draws` optimiser steps, each with new noise; return metrics, alike on every rank but for `seconds`.

        Raises FloatingPointError where the loss or a gradient is not finite.
        """
        started, learning = time.perf_counter(), self.learning
        for group in learning.optimizer.param_groups:
            group["lr"] = lr
        losses, norms = torch.zeros(draws, dtype=torch.float64), []
        for draw in range(draws):
            losses[draw], norm = self._step(draw)
            norms.append(norm)
        sums = losses.to(self.advantage.device)
        if learning.all_reduce is not None:
            learning.all_reduce([sums])
        trained = float(draws * self.batch.total_rows)
        return {
            "loss": float(sums.mean()),
            "grad_norm": float(np.mean(norms)),
            "optimiser_steps": draws,
            "learning_rate": lr,
            "network_calls_forward": 2 * trained,
            "network_calls_backward": trained,
            "seconds": time.perf_counter() - started,
        }

    def _step(self, draw: int) -> tuple[float, float]:
        learning, x = self.learning, self.batch.latents[-1]
        ids = {"seed": learning.config.run.seed, "round": self.round, "draw": draw}
        eps, at = drawn(self.groups, learning.schedule.steps, x.shape[1:], **ids)
        level = learning.schedule[at]
        shown = level.alpha * (at > 0)  # step 0 begins at the first level, as the student does
        x_t = like(shown, x) * x + like(level.sigma, x) * eps.to(x)
        with torch.no_grad(), learning.companion.in_place():
            earlier = torch.cat([self._denoised(x_t, level, rows) for rows in self.rows])

        def losses(rows: slice) -> Tensor:
            made = self._denoised(x_t, level, rows)
            return contrast_loss(made, earlier[rows], x[rows], level[rows], self.advantage[rows])

        where = f"round {self.round}, draw {draw}"
        return regress(
            learning, learning.optimizer, losses, self.rows, total=self.batch.total_rows, name="contrast", where=where
        )

    def _denoised(self, x_t: Tensor, level: Level, rows: slice) -> Tensor:
        encoded = {name: value[rows] for name, value in self.batch.encoded.items()}
        return self.predict(x_t[rows], level[rows], encoded).x0
