"""The scores of one work unit, which a reward worker computes as the unit's phase asks for them."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion import solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transfer import sent
from redif_ray.learning.matching import noised
from redif_ray.learning.rounding import images_received
from redif_ray.methods import Phase, Scoring
from redif_ray.models.protocol import repeated
from redif_ray.types import Meta, Seen, Slopes, Trajectories, Work, WorkUnit
from redif_ray.workers.slopes import Scorer, slopes


class Host(Scorer, Protocol):
    """The reward worker that a work unit is scored by: its models, its reward terms and its device."""

    device: str
    student_schedule: Schedule
    phases: dict[str, Phase]

    def targets(self, unit: WorkUnit) -> tuple[Meta, np.ndarray]: ...

    def terms_of(self, unit: WorkUnit, images: Tensor, teacher: Tensor) -> dict[str, np.ndarray]: ...

    def measured(self, unit: WorkUnit, images: Tensor, teacher: Tensor, *, judged: bool) -> Seen: ...

    def diversity(self, images: Tensor) -> np.ndarray: ...

    def load_learned(self, weights: Any, key: str | None) -> str | None: ...


class UnitScoring(Scoring):
    """Rewards and jumps of the rows of one work unit.

    `work` accounts for them; `learned_sha256` is the checksum of the learned reward that scored.
    final: the last latents, [R, *latent]; None where the phase asks for no images. trajectories: None where it asks for
    no jumps.
    targets: the teacher's images, [G, C, H, W]; None where the phase needs none.
    learned: handle of the weight store, and the key of the learned reward in it, or None for a run without one.
    """

    def __init__(
        self,
        worker: Host,
        unit: WorkUnit,
        final: np.ndarray | None,
        trajectories: Trajectories | None,
        targets: np.ndarray | None,
        learned: tuple[Any, str | None],
    ) -> None:
        self.worker, self.unit, self.targets = worker, unit, targets
        self.final, self.trajectories = final, trajectories
        self.learned_sha256: str | None = None
        self._learned = learned
        self._student: Tensor | None = None
        self._work: list[Work] = []

    @property
    def work(self) -> tuple[Work, ...]:
        """Return the cost of each part that the phase asked for, in order."""
        return tuple(self._work)

    @property
    def learns(self) -> bool:
        return self._learned[1] is not None

    def terms(self) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        self.learned_sha256 = self.worker.load_learned(*self._learned)
        teacher = None if self.targets is None else self._teacher()
        return self._scored(self._decoded(), teacher, started)

    def teacher_terms(self) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        teacher = self._teacher()
        return self._scored(teacher, teacher, started)

    def images(self) -> np.ndarray:
        return self._decoded().cpu().numpy()

    def jumps(self, substeps: int, solver: solvers.JumpSolver = "euler") -> np.ndarray:
        started, worker, unit, visited = time.perf_counter(), self.worker, self.unit, self.trajectories
        if visited is None:
            raise ValueError(f"phase {unit.phase} asks for jumps; expected asks_jumps=True in its class")
        schedule, teacher, guidance = worker.student_schedule, worker.teacher, worker.config.teacher.guidance
        stds = worker.phases[unit.phase].stds(schedule, unit.round)
        shared = len(visited.shared)
        once = teacher.encode(unit.conditions)
        encoded, jumps = repeated(once, unit.siblings), list[Tensor]()
        for k in range(schedule.steps):
            alike = k < shared  # siblings share the states of the first steps
            x = visited.shared[k] if alike else visited.latents[k - shared]
            x_t = sent(torch.from_numpy(x.copy()), worker.device)
            predict = teacher.predictor(once if alike else encoded, guidance)
            t, s = schedule.levels[k], schedule.levels[k + 1]
            made = solvers.jump(predict, x_t, teacher.process, t, s, stds[k], substeps, solver)
            jumps.append(made.repeat_interleave(unit.siblings if alike else 1, 0))
        calls = substeps * unit.predictions(schedule.steps, shared) * teacher.calls_per_step(guidance)
        anchors = torch.stack(jumps).cpu().numpy()
        self._add("anchor", started, calls)
        return anchors

    def gradients(self) -> Slopes:
        started = time.perf_counter()
        if self.final is None:
            raise ValueError(f"phase {self.unit.phase} asks for gradients; expected asks_images=True in its class")
        teacher = None if self.targets is None else self._teacher()
        found = slopes(self.worker, self.unit, self._latents(self.final), teacher)
        self._add("rewards", started)
        return found

    def denoised(self) -> np.ndarray:
        started, worker, unit = time.perf_counter(), self.worker, self.unit
        if self.final is None:
            raise ValueError(f"phase {unit.phase} asks for denoised latents; expected asks_images=True in its class")
        teacher, guidance = worker.teacher, worker.config.teacher.guidance
        final = self._latents(self.final)
        groups = [g for g in unit.groups for _ in range(unit.siblings)]
        x_t, level = noised(final, groups, teacher.process, seed=worker.config.run.seed, round=unit.round, draw=0)
        encoded = repeated(teacher.encode(unit.conditions), unit.siblings)
        found = teacher.predict(x_t, level, encoded, guidance=guidance).x0.cpu().numpy()
        self._add("teacher", started, unit.rows * teacher.calls_per_step(guidance))
        return found

    def seen(self) -> Seen:
        work, targets = self.worker.targets(self.unit)
        self._work += work.work
        self.targets = targets
        started = time.perf_counter()
        self.learned_sha256 = self.worker.load_learned(*self._learned)
        seen = self.worker.measured(self.unit, self._decoded(), self._teacher(), judged=True)
        self._add("rewards", started)
        return seen

    def diversity(self) -> np.ndarray:
        work, self.targets = self.worker.targets(self.unit)
        self._work += work.work
        started = time.perf_counter()
        found = [self.worker.diversity(images) for images in (self._decoded(), self._teacher())]
        self._add("evaluation", started)
        return np.stack(found, 1)

    def _scored(self, images: Tensor, teacher: Tensor | None, started: float) -> dict[str, np.ndarray]:
        """Return the reward terms of `images`, one a row, beside the teacher's."""
        terms = self.worker.terms_of(self.unit, images, teacher)
        self._add("rewards", started)
        return terms

    def _decoded(self) -> Tensor:
        """Return the student's images, [R, C, H, W] in [0, 1], decoded once."""
        if self.final is None:
            raise ValueError(f"phase {self.unit.phase} asks for images; expected asks_images=True in its class")
        if self._student is None:
            self._student = self.worker.teacher.images(self._latents(self.final))
        return self._student

    def _latents(self, final: np.ndarray) -> Tensor:
        """Return last latents, which may have travelled in 16 bits, as float32 on the worker's device."""
        return sent(torch.from_numpy(final.astype(np.float32)), self.worker.device)

    def _teacher(self) -> Tensor:
        """Return the teacher's image of each row, [R, C, H, W] in [0, 1]."""
        if self.targets is None:
            raise ValueError(f"phase {self.unit.phase} asks for rewards; expected teacher_images=True in its class")
        images = sent(images_received(self.targets), self.worker.device)
        return images.repeat_interleave(self.unit.siblings, 0)

    def _add(self, component: str, started: float, calls: int = 0) -> None:
        self._work.append(Work(component, time.perf_counter() - started, calls))
