"""TeacherRewardWorker: the teacher's image of each group, the reward terms, and the teacher's jumps for the anchor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.config import Config
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.evaluation.judge import Encoder, embedded, load_encoder, networks_of
from redif_ray.learning.exploration import phase_stds, shared_steps
from redif_ray.models.protocol import DiffusionModel, repeated
from redif_ray.planning import factory
from redif_ray.rewards.base import RewardInputs
from redif_ray.types import Meta, Scored, Shard, Trajectories, Work
from redif_ray.weights.publisher import fetch
from redif_ray.workers.offload import Offload, home


class TeacherRewardWorker:
    """Stateless but for its caches: everything a call needs is in its arguments."""

    def __init__(self, name: str, config: Config) -> None:
        torch.set_num_threads(config.reward.threads)
        self.name, self.config = name, config
        self.device = factory.device(config.reward.gpus)
        self.teacher = factory.teacher(config, home(self.device, config.pipeline.offload))
        self.student_schedule = factory.student_schedule(self.teacher, config.student)
        self.teacher_schedule = factory.teacher_schedule(self.teacher, config)
        self.rewards = factory.rewards(config, self.teacher, self.device)
        self.store = factory.target_store(config, self.teacher)
        self.judge: Encoder | None = None  # once an evaluation asks for its eyes
        self.loaded: tuple[str, str] | None = None  # key and checksum of the learned reward in place
        self.offload = Offload(self.device, self._belongings, taken=config.pipeline.offload)
        self.offload.rest()

    def ready(self) -> str:
        return self.name

    def _belongings(self) -> list[Module]:
        judge = [] if self.judge is None else networks_of(self.judge)
        return [self.teacher.network, *self.teacher.parts.values(), *self.rewards.networks(), *judge]

    def targets(self, shard: Shard) -> tuple[Meta, np.ndarray]:
        """The teacher's images of a shard's groups, [G, C, H, W] float32, from the store or computed and kept there.

        Its captions are encoded then, as after `encode`.
        """
        started = time.perf_counter()
        self._encode(shard)
        images = self.store.get(shard.stream, shard.groups, shard.conditions)
        calls = 0
        if images is None:
            t = self.config.teacher
            made, calls = self._sampled(self.teacher, shard, t.solver, self.teacher_schedule, t.guidance)
            images = made.cpu().numpy()
            self.store.put(shard.stream, shard.groups, shard.conditions, images)
        return Meta(shard, self.name, (Work("teacher", time.perf_counter() - started, calls),)), images

    def encode(self, shard: Shard) -> tuple[Meta, None]:
        """Encode a shard's captions, so that whoever rolls it out or learns from it finds them in their store."""
        started = time.perf_counter()
        self._encode(shard)
        return Meta(shard, self.name, (Work("teacher", time.perf_counter() - started, 0),)), None

    @torch.no_grad()
    def jump(self, shard: Shard, trajectories: Trajectories) -> tuple[Meta, Scored]:
        """The anchor's targets of a shard of the warm start, which no reward is asked for."""
        anchors, work = self._anchors(shard, trajectories)
        return Meta(shard, self.name, (work,)), Scored(shard, {}, None, anchors)

    @torch.no_grad()
    def score(
        self, shard: Shard, trajectories: Trajectories, targets: np.ndarray, weights: Any = None,
        learned: str | None = None,
    ) -> tuple[Meta, Scored]:
        """Reward terms of each row and, where a loss asks for them, the anchor's targets.

        learned: the key, in the store `weights`, of the learned reward that scores, where the run has one.
        """
        started = time.perf_counter()
        learned_sha256 = self._load(weights, learned)
        _, _, conditions = shard.per_row()
        student = self.teacher.decode(torch.from_numpy(trajectories.latents[-1].copy()).to(self.device))
        teacher = torch.from_numpy(targets.copy()).to(self.device).repeat_interleave(shard.siblings, 0)
        kept = self.store.features(shard.stream, shard.groups, shard.conditions)
        terms = _arrays(self.rewards(RewardInputs(student, teacher, conditions, kept)))
        best = None
        if shard.phase == "policy" and self.config.learner.anchor.gated:
            best = _arrays(self.rewards(RewardInputs(teacher, teacher, conditions, kept)))
        work = [Work("rewards", time.perf_counter() - started, 0)]
        anchors = None
        if shard.phase == "policy" and self.config.learner.anchor.weight > 0:
            anchors, cost = self._anchors(shard, trajectories)
            work.append(cost)
        images = student.cpu().numpy() if shard.phase == "deploy" or learned else None
        scored = Scored(shard, terms, targets, anchors, images)
        return Meta(shard, self.name, tuple(work), terms, best, learned_sha256), scored

    @torch.no_grad()
    def compare(
        self, shard: Shard, images: np.ndarray, targets: np.ndarray, weights: Any = None, learned: str | None = None
    ) -> tuple[Meta, dict[str, np.ndarray]]:
        """Reward terms of any images of a shard's groups, one a group, beside the teacher's. learned: as in `score`."""
        started = time.perf_counter()
        self._load(weights, learned)
        student, teacher = (torch.from_numpy(given.copy()).to(self.device) for given in (images, targets))
        kept = self.store.features(shard.stream, shard.groups, shard.conditions)
        terms = _arrays(self.rewards(RewardInputs(student, teacher, list(shard.conditions), kept)))
        return Meta(shard, self.name, (Work("rewards", time.perf_counter() - started, 0),)), terms

    def sample(
        self, shard: Shard, solver: str, schedule: str, steps: int, guidance: float
    ) -> tuple[Meta, np.ndarray]:
        """The teacher on any solver and named schedule: a control arm of the evaluation."""
        started = time.perf_counter()
        grid = schedules.build(self.teacher.process, steps, schedule)
        images, calls = self._sampled(self.teacher, shard, solver, grid, guidance)
        return Meta(shard, self.name, (Work("evaluation", time.perf_counter() - started, calls),)), images.cpu().numpy()

    def embed(self, shard: Shard, images: np.ndarray) -> tuple[Meta, np.ndarray]:
        """What the run's judge makes of images [n, C, H, W] float32 in [0, 1]: [n, D] float32. shard: for the meta."""
        started = time.perf_counter()
        if self.judge is None:
            self.judge = load_encoder(self.config.evaluation.judge, self.teacher.image_shape, self.device)
        found = embedded(self.judge, torch.from_numpy(images.copy()), self.device).numpy()
        return Meta(shard, self.name, (Work("evaluation", time.perf_counter() - started, 0),)), found

    def _load(self, weights: Any, key: str | None) -> str | None:
        """Put the learned reward `key` in place, checked against its checksum, which is answered."""
        term = self.rewards.learned
        if (term is None) != (key is None):
            raise ValueError(f"learned reward {key}: expected a key where the run has such a term, and else none")
        if term is None or key is None:
            return None
        if self.loaded is None or self.loaded[0] != key:
            found, checksum = fetch(weights, key)
            term.load(found)
            self.loaded = (key, checksum)
        return self.loaded[1]

    def _encode(self, shard: Shard) -> None:
        if not self.teacher.takes_captions:
            return
        self.teacher.encode(shard.conditions)
        if (self.config.student.guidance, self.config.teacher.guidance) != (1, 1):
            self.teacher.null_conditions(1)

    @torch.no_grad()
    def _sampled(
        self, model: DiffusionModel, shard: Shard, solver: str, grid: Schedule, guidance: float
    ) -> tuple[Tensor, int]:
        """Images [G, C, H, W] of a shard's groups, and the network calls that they took."""
        predict = model.predictor(model.encode(shard.conditions), guidance)
        images = model.decode(solvers.sample(solver, predict, self._noise(model, shard), grid))
        return images, solvers.network_calls(solver, grid.steps) * model.calls_per_step(guidance) * len(shard.groups)

    def _noise(self, model: DiffusionModel, shard: Shard) -> Tensor:
        """Unit noise of a shard's groups, on the worker's device."""
        shape, seed = model.latent_shape, self.config.run.seed
        return noise.initial_noise(shard.groups, shape, seed=seed, stream=shard.stream).to(self.device)

    def _anchors(self, shard: Shard, trajectories: Trajectories) -> tuple[np.ndarray, Work]:
        """The teacher's M-substep jump from every visited state, carrying the noise of the student's mean."""
        started = time.perf_counter()
        schedule, config = self.student_schedule, self.config
        substeps = (config.learner.anchor if shard.phase == "policy" else config.warm_start).substeps
        stds = phase_stds(schedule, config, shard.phase, shard.round)
        shared = shared_steps(config, stds)
        once = self.teacher.encode(shard.conditions)
        encoded, jumps = repeated(once, shard.siblings), list[Tensor]()
        for k in range(schedule.steps):
            every = shard.siblings if k < shared else 1  # siblings share the states before they part
            x = torch.from_numpy(trajectories.latents[k][::every].copy()).to(self.device)
            predict = self.teacher.predictor(once if k < shared else encoded, config.teacher.guidance)
            t, s = schedule.levels[k], schedule.levels[k + 1]
            made = solvers.jump(predict, x, self.teacher.process, t, s, stds[k], substeps)
            jumps.append(made.repeat_interleave(every, 0))
        states = shard.predictions(schedule.steps, shared)
        calls = substeps * states * self.teacher.calls_per_step(config.teacher.guidance)
        anchors = torch.stack(jumps).cpu().numpy()
        return anchors, Work("anchor", time.perf_counter() - started, calls)


def _arrays(terms: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy().astype(np.float32) for name, value in terms.items()}
