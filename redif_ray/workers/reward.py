"""TeacherRewardWorker: the teacher's image of each group, the reward terms, and the teacher's jumps for the anchor."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.config import Config
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.evaluation.diversity import load_likeness, mean_distance
from redif_ray.evaluation.encoders import Encoder, embedded, fit, knows, load_encoder, networks_of
from redif_ray.evaluation.judge_source import judge_files, needs_reference
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.evaluation.seen import see
from redif_ray.learning.rounding import image_dtype, images_as_sent
from redif_ray.methods import phases_by_name
from redif_ray.models.protocol import DiffusionModel
from redif_ray.planning import factory
from redif_ray.planning.rounds import teacher_block
from redif_ray.rewards.base import RewardInputs
from redif_ray.rewards.pretrained import ImageEncoder
from redif_ray.types import Condition, Meta, Reference, Scored, Seen, Trajectories, Way, Work, WorkUnit
from redif_ray.weights.publisher import fetch
from redif_ray.workers.offload import Offload, home
from redif_ray.workers.scoring import UnitScoring

REFERENCE_BYTES = 2**26  # of reference images, as float32, that are embedded at once


class TeacherRewardWorker:
    """Has no state but caches: a call's arguments hold everything that determines its result."""

    def __init__(self, name: str, config: Config) -> None:
        torch.set_num_threads(config.reward.threads)
        self.name, self.config = name, config
        self.device = factory.device(config.reward.gpus)
        self.teacher = factory.teacher(config, home(self.device, config.pipeline.colocate))
        self.student_schedule = factory.student_schedule(self.teacher, config.student)
        self.teacher_schedule = factory.teacher_schedule(self.teacher, config)
        self.phases = phases_by_name(config)
        self.rewards = factory.rewards(config, self.teacher, self.device)
        self.store = factory.target_store(config, self.teacher)
        self.judge: Encoder | None = None  # loaded when an evaluation first asks for features
        self.likeness: ImageEncoder | None = None  # loaded when an evaluation first asks for diversity
        self.loaded: tuple[str, str] | None = None  # key and checksum of the learned reward in place
        self.offload = Offload(self.device, self._belongings, taken=config.pipeline.colocate)
        self.offload.rest()

    def ready(self) -> str:
        return self.name

    def _belongings(self) -> list[Module]:
        judge = [] if self.judge is None else networks_of(self.judge)
        likeness = [] if self.likeness is None else [self.likeness.network]
        return [self.teacher.network, *self.teacher.parts.values(), *self.rewards.networks(), *judge, *likeness]

    def targets(self, unit: WorkUnit, block: WorkUnit | None = None) -> tuple[Meta, np.ndarray]:
        """Return the teacher's images of a unit's groups, [G, C, H, W] float32 in [0, 1].

        block: groups, the unit's among them in their order, whose images are sampled at once; None: the unit's alone.
        Images that the store lacks are computed, those of the whole block, and stored. The unit's captions are encoded
        too, as by `encode`.
        """
        started, calls = time.perf_counter(), 0
        self._encode(unit)
        block = block or unit
        first = block.groups.index(unit.groups[0])
        rows = range(first, first + len(unit.groups))
        images = self.store.get(block.stream, block.groups, block.conditions, rows)
        if images is None:
            t = self.config.teacher
            made, calls = self._sampled(self.teacher, block, t.solver, self.teacher_schedule, t.guidance)
            whole = made.cpu().numpy()
            self.store.put(block.stream, block.groups, block.conditions, whole)
            images = whole[rows.start : rows.stop].copy()
        return Meta(unit, self.name, (Work("teacher", time.perf_counter() - started, calls),)), images

    def sent_targets(self, unit: WorkUnit, block: WorkUnit | None = None) -> tuple[Meta, np.ndarray]:
        """Return `targets` as they travel between workers."""
        meta, images = self.targets(unit, block)
        return meta, images_as_sent(images, self.config)

    def stored(self, units: Sequence[WorkUnit]) -> tuple[Meta, list[bool]]:
        """Return of each work unit whether the store has the teacher's images of its groups."""
        found = [self.store.path(unit.stream, unit.groups, unit.conditions).exists() for unit in units]
        return Meta(units[0], self.name, ()), found

    def encode(self, unit: WorkUnit) -> tuple[Meta, None]:
        """Encode a work unit's captions into the store from which rollout workers and the learner read them."""
        started = time.perf_counter()
        self._encode(unit)
        return Meta(unit, self.name, (Work("teacher", time.perf_counter() - started, 0),)), None

    @torch.no_grad()
    def score(
        self,
        unit: WorkUnit,
        final: np.ndarray | None,
        trajectories: Trajectories | None = None,
        targets: np.ndarray | None = None,
        weights: Any = None,
        learned: str | None = None,
    ) -> tuple[Meta, Scored]:
        """Compute the reward terms of each row and the teacher's jumps, as far as the work unit's phase asks for them.

        final: the last latents, [R, *latent], or None where the phase asks for no images. trajectories: the states that
        jumps start from, or None where it asks for none. targets: the teacher's images, or None where it needs none.
        weights: handle of the weight store. learned: key in this store of the learned reward that scores; None for a
        run without one.
        """
        scoring = UnitScoring(self, unit, final, trajectories, targets, (weights, learned))
        scored = self.phases[unit.phase].score(scoring)
        terms = scored.terms or None
        meta = Meta(unit, self.name, scoring.work, terms, scored.teacher_terms, scoring.learned_sha256, scored.spreads)
        return meta, scored

    @torch.no_grad()
    def see(
        self,
        unit: WorkUnit,
        source: WorkUnit | Way,
        weights: Any = None,
        learned: str | None = None,
        judged: bool = True,
    ) -> tuple[Meta, Seen]:
        """Measure images of the teacher beside its own images of a unit's groups.

        source: another unit, whose stored images are measured (the unit itself: the teacher beside itself), or a way to
        sample the unit's own noises. weights, learned: as in `score`. judged: False leaves out reward terms, features
        and all that follows from them.
        """
        started, work = time.perf_counter(), list[Work]()
        if isinstance(source, WorkUnit):
            meta, images = self.targets(source)
            made = torch.from_numpy(images.copy()).to(self.device)
            work += meta.work
        else:
            grid = schedules.build(self.teacher.process, source.steps, source.schedule)
            made, calls = self._sampled(self.teacher, unit, source.solver, grid, source.guidance)
            work.append(Work("evaluation", time.perf_counter() - started, calls))
        meta, targets = self.targets(unit)
        started = time.perf_counter()
        if judged:
            self.load_learned(weights, learned)
        seen = self.measured(unit, made, torch.from_numpy(targets.copy()).to(self.device), judged=judged)
        work += [*meta.work, Work("rewards" if judged else "evaluation", time.perf_counter() - started, 0)]
        return Meta(unit, self.name, tuple(work)), seen

    def reference(self, unit: WorkUnit) -> tuple[Meta, Reference]:
        """Return the features of the judge's own reference images whose rows are the unit's groups.

        A judge that has none compares with the teacher's images of these groups.
        """
        source, work, judge = self.config.evaluation.judge, list[Work](), self._judge()
        started, labels = time.perf_counter(), list[Condition]()
        if needs_reference(source):
            meta, images = self.targets(unit)
            work, started = [*meta.work], time.perf_counter()
            features = [embedded(judge, torch.from_numpy((images * 255).round() / 255).to(self.device), self.device)]
        else:
            at_once = max(1, REFERENCE_BYTES // (4 * math.prod(judge.image_shape)))
            own, rows = (
                ReferenceImages(judge_files(source)[1], judge.image_shape[0]),
                (unit.groups[0], unit.groups[-1] + 1),
            )
            labels, batches = own.labels(*rows), own.batches(*rows, at_once)
            features = [
                embedded(judge, (torch.from_numpy(each) / 255).to(self.device), self.device) for each in batches
            ]
        found = np.concatenate(features)
        fits = fit(judge, found, labels) if knows(judge, labels) else {}
        work.append(Work("evaluation", time.perf_counter() - started, 0))
        return Meta(unit, self.name, tuple(work)), Reference(judge.name, found, fits)

    def terms_of(self, unit: WorkUnit, images: Tensor, teacher: Tensor | None) -> dict[str, np.ndarray]:
        """Return the reward terms of images [R, C, H, W], one for each row of a unit, beside the teacher's, if any."""
        terms = self.raw_terms(unit, images, teacher)
        return {name: value.cpu().numpy().astype(np.float32) for name, value in terms.items()}

    def raw_terms(
        self, unit: WorkUnit, images: Tensor, teacher: Tensor | None, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return reward terms as `terms_of` does, on the device and with their gradient. names: of these; None: all."""
        rounded = "float32"
        if unit.stream == Stream.TRAIN:  # images depend, in their last bits, on what they were sampled with
            rounded = image_dtype(self.config).__name__
            if (block := teacher_block(self.config, self.phases[unit.phase])) > len(unit.groups):
                rounded = f"{rounded}-{block}"
        kept = self.store.features(unit.stream, unit.groups, unit.conditions, rounded)
        _, _, conditions = unit.per_row()
        rewards = self.rewards if names is None else self.rewards.only(names)
        return rewards(RewardInputs(images, teacher, conditions, kept))

    def measured(self, unit: WorkUnit, images: Tensor, teacher: Tensor, *, judged: bool) -> Seen:
        """Return the measurements of images [G, C, H, W] beside the teacher's; see `see`."""
        terms = self.terms_of(unit, images, teacher) if judged else {}
        return see(unit, images, teacher, terms, self._judge() if judged else None)

    def diversity(self, images: Tensor) -> np.ndarray:
        """Return how far apart the images [R, C, H, W] of each condition are, float64; see `mean_distance`."""
        wanted = self.config.evaluation.diversity
        if self.likeness is None:
            self.likeness = load_likeness(wanted, self.teacher.image_shape, self.device)
        return mean_distance(self.likeness.features(images)[:, 0], wanted.noises).cpu().numpy()

    def _judge(self) -> Encoder:
        if self.judge is None:
            self.judge = load_encoder(self.config.evaluation.judge, self.teacher.image_shape, self.device)
        return self.judge

    def load_learned(self, weights: Any, key: str | None) -> str | None:
        """Load the learned reward `key` of the store `weights`; return its checksum, or None for a run without one."""
        term = self.rewards.learned
        if (term is None) != (key is None):
            raise ValueError(f"learned reward {key}: expected a key if the run has a learned term, and None otherwise")
        if term is None or key is None:
            return None
        if self.loaded is None or self.loaded[0] != key:
            loaded, checksum = fetch(weights, key)
            term.load(loaded)
            self.loaded = (key, checksum)
        return self.loaded[1]

    def _encode(self, unit: WorkUnit) -> None:
        if not self.teacher.takes_captions:
            return
        self.teacher.encode(unit.conditions)
        scales = self.config.student.guidance, self.config.teacher.guidance
        if any(self.teacher.calls_per_step(scale) > 1 for scale in scales):
            self.teacher.null_conditions(1)

    @torch.no_grad()
    def _sampled(
        self, model: DiffusionModel, unit: WorkUnit, solver: str, grid: Schedule, guidance: float
    ) -> tuple[Tensor, int]:
        """Return images [G, C, H, W] of a work unit's groups, and the network calls that they took."""
        predict = model.predictor(model.encode(unit.conditions), guidance)
        images = model.images(solvers.sample(solver, predict, self._noise(model, unit), grid))
        return images, solvers.network_calls(solver, grid.steps) * model.calls_per_step(guidance) * len(unit.groups)

    def _noise(self, model: DiffusionModel, unit: WorkUnit) -> Tensor:
        """Return the unit noise of a work unit's groups, [G, *latent], on the worker's device."""
        shape, seed = model.latent_shape, self.config.run.seed
        return noise.initial_noise(unit.groups, shape, seed=seed, stream=unit.stream, device=self.device)
