"""The worker of a search, which samples the searched network along any schedule and scores the images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_ray.config import Config
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Times
from redif_ray.evaluation.encoders import make_encoder
from redif_ray.planning import factory
from redif_ray.rewards.base import RewardInputs
from redif_ray.search import gits, gradient
from redif_ray.search.terms import FEATURES, TARGETS
from redif_ray.types import Meta, Seen, Work, WorkUnit
from redif_ray.workers import reward


class SearchWorker(reward.TeacherRewardWorker):
    """A reward worker that also samples the searched network; its caches are its only state."""

    def __init__(self, name: str, config: Config) -> None:
        super().__init__(name, config)
        self.model, student = self.teacher, config.search.student
        if student is not None:
            self.model = factory.model(config, student, self.device)
        frechet = config.search.frechet
        self.encoder = make_encoder(frechet.encoder, self.model.image_shape) if frechet.weight else None

    @torch.no_grad()
    def terms(self, unit: WorkUnit, times: Times, targets: np.ndarray) -> tuple[Meta, dict[str, Any]]:
        """Return raw reward terms by name, [G] each, of the images along the schedule `times`.

        A search with a Fréchet distance gets also the features of the images and of the teacher's images, [G, D].
        targets: the teacher's images, float32 [G, C, H, W] in [0, 1].
        """
        started = time.perf_counter()
        images, calls = self._along(unit, times)
        kept = self.store.features(unit.stream, unit.groups, unit.conditions)
        teacher = torch.from_numpy(targets.copy()).to(self.device)
        terms = self.rewards(RewardInputs(images, teacher, list(unit.conditions), kept))
        if self.encoder is not None:
            terms |= {FEATURES: self.encoder.embedding(images.cpu()), TARGETS: self.encoder.embedding(teacher.cpu())}
        work = Work("search", time.perf_counter() - started, calls)
        return Meta(unit, self.name, (work,)), {name: value.cpu().numpy() for name, value in terms.items()}

    @torch.no_grad()
    def see_along(self, unit: WorkUnit, times: Times) -> tuple[Meta, Seen]:
        """Measure the images along the schedule `times` beside the teacher's."""
        started = time.perf_counter()
        images, calls = self._along(unit, times)
        meta, targets = self.targets(unit)
        seen = self.measured(unit, images, torch.from_numpy(targets.copy()).to(self.device), judged=True)
        return Meta(unit, self.name, (Work("evaluation", time.perf_counter() - started, calls), *meta.work)), seen

    def costs(self, unit: WorkUnit) -> tuple[Meta, np.ndarray]:
        """Return GITS's cost matrix on the trajectories of a work unit, float64 [M + 1, M + 1]."""
        started = time.perf_counter()
        levels = gits.grid(self.model.process)
        predict = self.model.predictor(self.model.encode(unit.conditions), self.guidance)
        cost = gits.costs(predict, self._noise(self.model, unit), levels)
        calls = levels.steps * self.model.calls_per_step(self.guidance) * len(unit.groups)
        return Meta(unit, self.name, (Work("gits", time.perf_counter() - started, calls),)), cost

    def descend(
        self, bank: WorkUnit, base: Sequence[float], targets: np.ndarray, weights: dict[str, float]
    ) -> tuple[Meta, list[Times]]:
        """Minimise -sum(weights x terms) on the noises of `bank` from the schedule `base`; return the candidates.

        base: timesteps [N]; targets: the teacher's images of the bank, float32 [B, C, H, W] in [0, 1].
        """
        started, d = time.perf_counter(), self.config.search.descent
        self.rewards.require_differentiable(f"search.engine={self.config.search.engine}")
        self.model.network.requires_grad_(False)
        process = self.model.process
        per_epoch = len(bank.groups) // d.batch

        def loss(schedule: schedules.Schedule, iteration: int) -> Tensor:
            epoch, place = divmod(iteration, per_epoch)
            order = noise.permutation(len(bank.groups), Stream.DESCENT, seed=self.config.run.seed, round=epoch)
            rows = order[place * d.batch : (place + 1) * d.batch]
            part = WorkUnit(
                0,
                0,
                "deploy",
                bank.stream,
                tuple(bank.groups[i] for i in rows),
                tuple(bank.conditions[i] for i in rows),
            )
            predict = self.model.predictor(self.model.encode(part.conditions), self.guidance)
            images = self.model.images(
                solvers.sample(self.config.search.solver, predict, self._noise(self.model, part), schedule)
            )
            teacher = torch.from_numpy(targets[rows]).to(self.device)
            terms = self.rewards(RewardInputs(images, teacher, list(part.conditions)))
            return -sum((w * terms[name].mean() for name, w in weights.items()), torch.zeros(()))

        start = schedules.explicit(process, base)
        candidates = gradient.descend(
            process, start, loss, iterations=d.iterations, lr=d.lr, network_timesteps=d.network_timesteps
        )
        calls = d.iterations * d.batch * self.model.calls_per_step(self.guidance)
        calls *= solvers.network_calls(self.config.search.solver, len(base))
        meta = Meta(bank, self.name, (Work("descent", time.perf_counter() - started, calls),))
        return meta, [schedule.times for schedule in candidates]

    @property
    def guidance(self) -> float:
        return self.config.student.guidance

    def _along(self, unit: WorkUnit, times: Times) -> tuple[Tensor, int]:
        """Return images of the searched network along the schedule `times`, and the number of network calls."""
        schedule = schedules.explicit(self.model.process, times.levels, network_timesteps=times.network_timesteps)
        return self._sampled(self.model, unit, self.config.search.solver, schedule, self.guidance)
