"""The network of distribution matching that denoises the student's images, trained beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from redif_ray.checkpoint import load_optimizer, optimizer_tensors, pack, unpack
from redif_ray.diffusion.levels import Level
from redif_ray.learning.matching import denoising_loss, noised
from redif_ray.learning.regression import regress
from redif_ray.learning.round_update import Learning
from redif_ray.learning.step import make_optimizer, microbatches
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.student import enable_checkpointing, get_weights, make_student, set_weights, trainable

NAME, OPTIMIZER = "fake_score", "fake_score_optimizer"


class FakeScore:
    """A copy of the teacher, or adapters on it, with an optimiser of its own. Every rank has the same one."""

    def __init__(self, learning: Learning) -> None:
        if learning.teacher is None:
            raise ValueError("the learner holds no teacher to copy; expected learner.fsdp=false")
        self.learning, self.settings = learning, learning.config.distribution_matching
        self.model: DiffusionModel = make_student(learning.teacher, self.settings.lora)
        if learning.config.learner.activation_checkpointing:
            enable_checkpointing(self.model)
        self.parameters = trainable(self.model)
        self.optimizer = make_optimizer(self.parameters.values(), learning.config.learner)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.fake_lr

    def belongings(self) -> list[Any]:
        """Return the network and the optimiser, which are on the learner's device."""
        return [self.model.network, self.optimizer]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        moments = optimizer_tensors(self.optimizer, self.parameters)
        return pack(NAME, get_weights(self.model)) | pack(OPTIMIZER, moments)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state` from the tensors of a whole checkpoint."""
        set_weights(self.model, unpack(NAME, tensors))
        load_optimizer(self.optimizer, self.parameters, unpack(OPTIMIZER, tensors))

    @torch.no_grad()
    def denoised(self, x_t: Tensor, level: Any, encoded: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction of the clean image, [B, *latent], in microbatches."""
        parts = microbatches(len(x_t), self.learning.config.learner.states_at_once)
        return torch.cat([self._predict(x_t[r], level[r], {k: v[r] for k, v in encoded.items()}) for r in parts])

    def run(
        self, x: Tensor, encoded: Mapping[str, Tensor], groups: Sequence[int], *, total: int, round: int
    ) -> dict[str, float]:
        """Train on this rank's student images x [B, *latent] with fresh noise in each step; return metrics.

        total: images of the whole round. Raises FloatingPointError where the loss or a gradient is not finite.
        """
        learning, losses = self.learning, torch.zeros(self.settings.fake_steps, dtype=torch.float64)
        for step in range(self.settings.fake_steps):
            seed = learning.config.run.seed
            x_t, level = noised(x, groups, self.model.process, seed=seed, round=round, draw=1 + step)

            def own(rows: slice, x_t: Tensor = x_t, level: Level = level) -> Tensor:
                conditions = {name: value[rows] for name, value in encoded.items()}
                return denoising_loss(self._predict(x_t[rows], level[rows], conditions), x[rows], level[rows])

            batches = microbatches(len(x), learning.config.learner.states_at_once)
            where = f"round {round}, step {step} of the fake score"
            losses[step], _ = regress(learning, self.optimizer, own, batches, total=total, name=NAME, where=where)
        sums = losses.to(x.device)
        if learning.all_reduce is not None:
            learning.all_reduce([sums])
        return {"loss": float(sums.mean())}

    def _predict(self, x_t: Tensor, level: Any, encoded: dict[str, Tensor]) -> Tensor:
        return self.model.predict(x_t, level, encoded).x0
