"""StudentRolloutWorker: rolls out the student's trajectories of a work unit with the weights of a given version."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.config import Config
from redif_ray.diffusion import noise, solvers
from redif_ray.diffusion.rollout import Guide, rollout
from redif_ray.learning.exploration import shared_steps
from redif_ray.methods import phases_by_name
from redif_ray.models.protocol import repeated
from redif_ray.models.student import initial_weights, set_weights
from redif_ray.planning import factory
from redif_ray.planning.messages import rolled_out
from redif_ray.runs.deployed import INITIAL, checkpoint_of, deployed_weights
from redif_ray.runs.folder import RunFolder
from redif_ray.types import Condition, Meta, Trajectories, Work, WorkUnit
from redif_ray.weights.publisher import fetch
from redif_ray.weights.store import version
from redif_ray.workers.offload import Offload, home


class StudentRolloutWorker:
    """Has no state but caches: a call's arguments hold everything that determines its result."""

    def __init__(self, name: str, config: Config) -> None:
        torch.set_num_threads(config.rollout.threads)
        self.name, self.config = name, config
        self.device = factory.device(config.rollout.gpus)
        self.teacher = factory.frozen(config, home(self.device, config.pipeline.colocate))
        self.student = factory.student(config, self.teacher)
        self.offload = Offload(self.device, self._belongings, taken=config.pipeline.colocate)
        self.schedule = factory.student_schedule(self.student, config.student)
        self.phases = phases_by_name(config)
        self.loaded: tuple[str, str] | None = None  # key and checksum of the weights in place
        self.offload.rest()

    def ready(self) -> str:
        return self.name

    def _belongings(self) -> list[Module]:
        return [self.student.network, self.teacher.network, *self.teacher.parts.values()]

    def rollout(self, unit: WorkUnit, weights: Any, key: str) -> tuple[Meta, Trajectories | None, np.ndarray | None]:
        """Roll out a work unit with the weights `key` of the store `weights`.

        Return the meta, the trajectories for the learner or for the teacher's jumps, and the last latents,
        [R, *latent], for a reward worker to decode; see `rolled_out`. The pool calls this with num_returns=3, so that
        only the meta travels to the caller, and each product to its reader alone.
        """
        started = time.perf_counter()
        number = self._load(weights, key)
        groups, siblings, conditions = unit.per_row()
        model, config = self.student, self.config
        once = model.encode(unit.conditions)
        once_each = model.predictor(once, config.student.guidance)
        predict = model.predictor(repeated(once, unit.siblings), config.student.guidance)
        stds = self.phases[unit.phase].stds(self.schedule, unit.round)
        shared = shared_steps(config, stds)
        unit_noise = noise.initial_noise(
            unit.groups, model.latent_shape, seed=config.run.seed, stream=unit.stream, device=self.device
        )
        x = solvers.initial(self.schedule, unit_noise.repeat_interleave(unit.siblings, 0))

        def draw(step: int) -> Tensor:
            return noise.exploration_noise(
                groups,
                siblings,
                model.latent_shape,
                seed=config.run.seed,
                round=unit.round,
                step=step,
                antithetic=config.exploration.antithetic,
                device=self.device,
            )

        teacher_guided = config.rollout.guided if unit.siblings > 1 else 0
        guided = torch.tensor([k >= unit.siblings - teacher_guided for k in siblings])
        guide = self._guide(conditions, guided, stds) if bool(guided.any()) else None
        episode = rollout(
            predict,
            x,
            self.schedule,
            stds,
            draw,
            once=once_each,
            shared=shared,
            siblings=unit.siblings,
            guide=guide,
            guided=guided,
        )
        calls = unit.predictions(self.schedule.steps, shared) * model.calls_per_step(config.student.guidance)
        work = Work(
            "rollout" if unit.stream == noise.Stream.TRAIN else "evaluation", time.perf_counter() - started, calls
        )
        made_by = number, self.loaded[1] if self.loaded else ""
        products = rolled_out(config, self.phases[unit.phase], unit, stds, episode, made_by)
        return Meta(unit, self.name, (work,)), *products

    def _guide(self, conditions: list[Condition], guided: Tensor, stds: Tensor) -> Guide:
        """Return the function that moves the guided rows by the teacher's jump (teacher-guided siblings).

        conditions: one for each row. guided: [R] bool, True for the rows that the teacher guides.
        """
        teacher, config = self.teacher, self.config
        encoded = teacher.encode([c for c, g in zip(conditions, guided.tolist(), strict=True) if g])
        predict = teacher.predictor(encoded, config.teacher.guidance)

        def guide(x: Tensor, k: int) -> Tensor:
            return solvers.jump(
                predict,
                x,
                teacher.process,
                self.schedule.levels[k],
                self.schedule.levels[k + 1],
                stds[k],
                config.learner.anchor.substeps,
            )

        return guide

    def _load(self, weights: Any, key: str) -> int:
        """Load the weights `key` into the student; return their policy version."""
        if self.loaded is None or self.loaded[0] != key:
            found, checksum = self._found(weights, key)
            set_weights(self.student, found)
            self.loaded = (key, checksum)
        return version(key)

    def _found(self, weights: Any, key: str) -> tuple[Mapping[str, Tensor], str]:
        """Return the weights that a key stands for, and their checksum, which the learner compares for the store's."""
        if key == INITIAL:
            return initial_weights(factory.start(self.config, self.teacher), self.config.student.lora), key
        if (checkpoint := checkpoint_of(key)) is not None:
            return deployed_weights(RunFolder.place(self.config, resume=True), checkpoint)[0], key
        return fetch(weights, key)
