"""The products of a rollout that travel through Ray's object store, and the bytes that a run keeps there, counted.

Rollout workers send what `rolled_out` returns. The count calls the same function, and the phases' own `score`, with
arrays that have a shape and no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_ray.config import LEARNED, Config
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.rollout import Episode
from redif_ray.diffusion.solvers import JumpSolver
from redif_ray.learning.exploration import shared_steps
from redif_ray.learning.rounding import image_dtype, travelling_dtype
from redif_ray.methods import Deploy, Phase, Scoring, phases_of
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_outline
from redif_ray.models.student import make_student, trainable, trained_numbers
from redif_ray.planning import factory
from redif_ray.planning.rounds import units_at_once, versions_kept
from redif_ray.types import LARGEST, PICTURES, Seen, Slopes, Trajectories, WorkUnit

LARGEST_FEATURES = 1024  # numbers that a judge makes of an image, at most


def rolled_out(
    config: Config, phase: Phase, unit: WorkUnit, stds: Tensor, episode: Episode, made_by: tuple[int, str]
) -> tuple[Trajectories | None, np.ndarray | None]:
    """Return what others read of a unit's episode: the trajectories, and the last latents, [R, *latent].

    The learner and the teacher's jumps read trajectories. A reward worker decodes the last latents, in 16 bits where
    the networks compute in 16 bits. Either is None where the phase reads none. stds: S of each transition, [N].
    made_by: policy version and checksum of the weights.
    """
    final = None
    if phase.asks_images:
        final = episode.latents[-1].cpu().numpy().astype(travelling_dtype(config), copy=False)
    if not phase.asks_jumps and "trajectories" not in phase.learner_reads:
        return None, final
    shared = shared_steps(config, stds)
    states = episode.latents[: _states(phase, stds)].cpu().numpy()
    means = episode.means.cpu().numpy() if phase.reads_means else None
    first = np.ascontiguousarray(states[:shared, :: unit.siblings])
    return Trajectories(unit, *made_by, first, states[shared:], episode.log_probs.cpu().numpy(), means), final


def _states(phase: Phase, stds: Tensor) -> int:
    """Return how many states of an episode are read, of N + 1; the last of these is read as an action alone."""
    explored = torch.nonzero(stds).flatten().tolist()
    if explored and not phase.reads_every_state and not phase.reads_last:
        return int(explored[-1]) + 2
    return len(stds) + (phase.reads_last or bool(stds[-1] > 0))


@dataclass(frozen=True, slots=True)
class Messages:
    """Bytes in the object store, of a round or of a deployment, by kind.

    trajectories: for the learner and the teacher's jumps. final: last latents, for the reward workers. targets: the
    teacher's images. scores: what `Phase.score` returns: terms, jumps, and images where somebody reads them.
    """

    trajectories: int = 0
    final: int = 0
    targets: int = 0
    scores: int = 0

    @property
    def total(self) -> int:
        return self.trajectories + self.final + self.targets + self.scores


@dataclass(frozen=True, slots=True)
class Store:
    """Bytes that a run keeps in the object store of its cluster at once, at most.

    rounds: of the round that the learner updates on and those that are made meanwhile (`pipeline.staleness`).
    ahead: teacher's images that are made for the round after them. deployment: of the largest one.
    weights: all versions that the weight store keeps, and the one that is being published.
    """

    rounds: int
    ahead: int
    deployment: int
    weights: int

    @property
    def total(self) -> int:
        return self.rounds + self.ahead + self.deployment + self.weights


def of_phase(config: Config, phase: Phase, model: DiffusionModel, groups: int) -> Messages:
    """Count the bytes that `groups` groups of a phase put into the object store, in the round that takes the most.

    model: the teacher, which may be on the meta device.
    """
    unit = WorkUnit(0, 0, phase.name, Stream.TRAIN, (0,) * groups, (None,) * groups, phase.siblings)
    targets = _hollow(groups, *model.image_shape, dtype=image_dtype(config)) if phase.teacher_images else None
    if not phase.plays:
        return Messages(targets=_bytes(targets))
    schedule = factory.student_schedule(model, config.student)
    rows, steps, shape = unit.rows, schedule.steps, model.latent_shape
    shapes = (steps + 1, rows, *shape), (steps, rows, *shape), (steps, rows)
    episode = Episode(*(torch.zeros(()).expand(each) for each in shapes))
    made = []
    for round in range(phase.first_round, phase.first_round + steps):  # `exploration.one_step` comes round in N rounds
        stds = phase.stds(schedule, round)
        trajectories, final = rolled_out(config, phase, unit, stds, episode, (0, ""))
        scored = phase.score(_Hollow(config, model, unit, final, trajectories, targets))
        made.append(Messages(_bytes(trajectories), _bytes(final), _bytes(targets), _bytes(scored)))
    return max(made, key=lambda each: each.total)


def of_rounds(config: Config, model: DiffusionModel) -> dict[str, Messages]:
    """Count the bytes that a round of each phase puts into the object store, by the phase's name."""
    return {phase.name: of_phase(config, phase, model, phase.groups) for phase in phases_of(config)}


def store(config: Config) -> Store:
    """Count the bytes that a run keeps in the object store at once. Raises ModelError for an unknown teacher."""
    model = teacher_outline(config.teacher, dtype=getattr(torch, config.networks.precision))
    rounds = of_rounds(config, model).values()
    learned = factory.learned_reward(config, model, "meta")
    kept = versions_kept(config)
    versions = _weights(config, model) * (2 * kept + 1)  # to roll out with, to deploy, and one under way
    if learned is not None:
        versions += kept * sum(w.numel() * w.itemsize for w in learned.network.state_dict().values())
    return Store(
        rounds=(config.pipeline.staleness + 1) * max((each.total for each in rounds), default=0),
        ahead=0 if config.pipeline.colocate else max((each.targets for each in rounds), default=0),
        deployment=_deployment(config, model),
        weights=versions,
    )


def _deployment(config: Config, model: DiffusionModel) -> int:
    """Return the bytes of the largest deployment: last latents of the units in progress, measurements of all."""
    count = max(config.validation.groups, config.evaluation.held_out)
    in_progress = min(count, units_at_once(config) * config.evaluation.images_at_once)
    phase = Deploy(config)
    return of_phase(config, phase, model, in_progress).final + of_phase(config, phase, model, count).scores


def _weights(config: Config, model: DiffusionModel) -> int:
    """Return the bytes of a version of the student's trained weights."""
    if config.student.lora.rank:  # adapters are not built, which takes seconds for a large network
        return 4 * trained_numbers(model.network, config.student.lora)
    student = make_student(factory.start(config, model), config.student.lora)
    dtypes = factory.travelling_dtypes(config, student)
    return sum(w.numel() * dtypes.get(name, w.dtype).itemsize for name, w in trainable(student).items())


class _Hollow(Scoring):
    """Answers a phase's questions with arrays without data."""

    def __init__(
        self,
        config: Config,
        model: DiffusionModel,
        unit: WorkUnit,
        final: np.ndarray | None,
        trajectories: Trajectories | None,
        targets: np.ndarray | None,
    ) -> None:
        self.config, self.model, self.unit = config, model, unit
        self.final, self.trajectories, self.targets = final, trajectories, targets

    def terms(self) -> dict[str, np.ndarray]:
        return {name: _hollow(self.unit.rows) for name in self.config.reward.terms}

    def teacher_terms(self) -> dict[str, np.ndarray]:
        return self.terms()

    def images(self) -> np.ndarray:
        return _hollow(self.unit.rows, *self.model.image_shape)

    def jumps(self, substeps: int, solver: JumpSolver = "euler") -> np.ndarray:
        return _hollow(self.config.student.steps, self.unit.rows, *self.model.latent_shape)

    def gradients(self) -> Slopes:
        each = {name: _hollow(self.unit.rows) for name in self.config.reward.weights}
        weighted = [name for name, weight in self.config.reward.weights.items() if weight]
        return Slopes(
            each,
            {name: _hollow(self.unit.rows, *self.model.latent_shape) for name in weighted},
            {name: _hollow(self.unit.rows) for name in weighted},
        )

    def denoised(self) -> np.ndarray:
        return _hollow(self.unit.rows, *self.model.latent_shape)

    def seen(self) -> Seen:
        rows, (channels, height, width) = self.unit.rows, self.model.image_shape
        pictures = _hollow(min(rows, PICTURES), channels, min(height, LARGEST), min(width, LARGEST)).astype(np.uint8)
        features = _hollow(rows, LARGEST_FEATURES)
        return Seen((), _hollow(rows), self.terms(), 0.0, features, {}, pictures, pictures)

    def diversity(self) -> np.ndarray:
        return _hollow(self.unit.rows, 2)

    @property
    def learns(self) -> bool:
        return LEARNED in self.config.reward.terms


def _hollow(*shape: int, dtype: type[np.generic] = np.float32) -> np.ndarray:
    """Return an array of a shape, whose numbers all lie in the same bytes."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _bytes(value: Any) -> int:
    return sum(array.nbytes for array in _arrays(value))


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Yield the arrays in a message."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _arrays(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
