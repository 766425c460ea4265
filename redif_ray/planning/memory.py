"""The memory that each worker of a run needs on its device, computed before anything is loaded.

Networks are built and run on the meta device, whose tensors have sizes but no data, and the bytes of the tensors that
are alive at once are counted. A GPU's allocator and libraries take `OVERHEAD_MB` besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch.nn import Module

from redif_ray.config import Config
from redif_ray.methods import phases_of
from redif_ray.models.headers import weight_files
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import model_folder, teacher_outline
from redif_ray.models.sharding import units
from redif_ray.models.student import enable_checkpointing, make_student, trainable
from redif_ray.planning import factory
from redif_ray.planning.activations import decode, learn, predict, ready, train
from redif_ray.planning.peak import peak_mb
from redif_ray.rewards.pretrained import SHIPPED

OVERHEAD_MB = 1200  # CUDA's context, cuBLAS and cuDNN workspaces, fragments
ADAM_BYTES = 8  # for each weight: two float32 moments


@dataclass(frozen=True, slots=True)
class Footprint:
    """MB of one worker: `weights` of all networks, `training` (gradients, moments, average), `activations` at most.

    Activations are those of a call, or what an optimiser step takes for itself, for the two never meet.
    start: MB while the worker loads whole networks, before it keeps only its share, or its dtype, of them.
    batch: a round's states.
    """

    weights: float
    training: float
    activations: float
    start: float = 0.0
    batch: float = 0.0

    @property
    def total(self) -> float:
        return max(self.start, self.weights + self.training + self.batch + self.activations)


@dataclass(frozen=True, slots=True)
class Footprints:
    """The footprint of a worker of each role, and sizes.

    roles: by `rollout`, `reward` and `learner`. trained, network: numbers of trained weights and of all weights of the
    network. image: number of values of an image.
    """

    roles: dict[str, Footprint]
    trained: int
    network: int
    image: int


def workers(config: Config) -> dict[str, tuple[int, float]]:
    """Return (number of workers, GPUs of one) by role."""
    return {
        "rollout": (config.rollout.max_workers, config.rollout.gpus),
        "reward": (config.reward.max_workers, config.reward.gpus),
        "learner": (config.learner.workers, config.learner.gpus),
    }


def footprints(config: Config, *, activations: bool = True) -> Footprints:
    """Return the footprints of a run's workers. Raises ModelError for a teacher that cannot be loaded.

    activations: False leaves these out, which takes a moment; counting them takes seconds for a large network.
    """
    free = {"learner": {"microbatch"}, "evaluation": {"batch"}}  # the networks are the same for any such numbers
    networks = _networks(config.model_dump_json(exclude=free))
    return networks.footprints(config) if activations else networks.held


@lru_cache(maxsize=1)  # the choice of the two numbers and the estimate count the same networks
def _networks(config: str) -> Networks:
    return Networks(Config.model_validate_json(config))


class Networks:
    """The networks of a run, without weights.

    held: the footprints without activations, which do not depend on `learner.microbatch` and `evaluation.batch`.
    """

    def __init__(self, config: Config) -> None:
        self.teacher = teacher_outline(config.teacher, dtype=getattr(torch, config.networks.precision))
        self.student = make_student(self.teacher, config.student.lora)
        if config.learner.activation_checkpointing:
            enable_checkpointing(self.student)
        self.learned = factory.learned_reward(config, self.teacher, "meta")
        self.held = self._held(config)
        self.cast = ready(self.student) + ready(self.teacher)

    def footprints(self, config: Config) -> Footprints:
        """Return the footprints with the activations of a configuration's batches."""
        batch, states = config.evaluation.images_at_once, config.learner.states_at_once
        rows = max(config.rollout.unit_groups * config.rollout.siblings, batch)
        learned = partial(learn, self.learned, states, min(states, config.rollout.groups))
        calls = {
            "rollout": [partial(predict, self.student, rows, config.student.guidance)],
            "reward": [
                partial(predict, self.teacher, rows, config.teacher.guidance),
                partial(decode, self.teacher, rows),
            ],
            "learner": [partial(train, self.student, states, config.student.guidance), learned],
        }
        peaks = {role: max(map(peak_mb, made)) for role, made in calls.items()}
        peaks["rollout"] += self.cast / 1e6
        roles = {
            role: replace(held, activations=max(held.activations, peaks[role]))
            for role, held in self.held.roles.items()
        }
        return replace(self.held, roles=roles)

    def _held(self, config: Config) -> Footprints:
        teacher, student, parts = self.teacher, self.student, _Parts(self.teacher)
        network = _bytes(teacher.network) + parts.always
        own = {id(p) for p in teacher.network.parameters()}
        added = sum(p.numel() * p.element_size() for p in student.network.parameters() if id(p) not in own)
        average = 4 if config.learner.ema or config.warm_start.ema else 0
        trained = sum(p.numel() for p in trainable(student).values())
        scores = any(phase.scores_in_learner for phase in phases_of(config))
        beside = parts.always + (parts.decode + _encoders(config) if scores else 0)
        held = beside + (_shared(config, teacher, student) if config.learner.fsdp else _bytes(teacher.network) + added)
        learned = _bytes(self.learned.network) if self.learned else 0
        ranks = config.learner.workers if config.learner.fsdp else 1
        training = trained * (4 + ADAM_BYTES + average) // ranks + learned * (4 + ADAM_BYTES) // 4
        reward = (
            network + parts.decode + parts.encode + _encoders(config) + learned + _on_disk({config.evaluation.judge})
        )
        read = {role: 0 if gpus else _read(config, teacher) for role, (_, gpus) in workers(config).items()}
        starts = {
            "rollout": read["rollout"],
            "reward": read["reward"],
            "learner": max(added + learned, read["learner"]),
        }
        rollout, step = network + added, _step(config, trained)
        start = {role: (network + extra) / 1e6 for role, extra in starts.items()}
        batch = _batch(config, teacher) / 1e6
        roles = {
            "rollout": Footprint(rollout / 1e6, 0.0, 0.0, start=start["rollout"]),
            "reward": Footprint(reward / 1e6, 0.0, 0.0, start=start["reward"]),
            "learner": Footprint(
                (held + learned) / 1e6, training / 1e6, step / 1e6, start=start["learner"], batch=batch
            ),
        }
        numbers = sum(p.numel() for p in teacher.network.parameters())
        return Footprints(roles, trained, numbers, math.prod(teacher.image_shape))


def _read(config: Config, model: DiffusionModel) -> int:
    """Return the bytes of the network's files if their dtype is another one, so that a process on CPUs holds both."""
    files = sum(path.stat().st_size for path in weight_files(model_folder(config.teacher.model) / model.component))
    own = _bytes(model.network)
    return 0 if abs(files - own) < 0.1 * own else files


def _step(config: Config, trained: int) -> int:
    """Return the bytes that an optimiser step takes for itself.

    On a GPU, AdamW makes one temporary of all weights at once. Several ranks sum a copy of all gradients.
    """
    learner = config.learner
    if not learner.gpus and learner.workers == 1:
        return 0
    return 4 * trained // (learner.workers if learner.fsdp else 1)


def _batch(config: Config, model: DiffusionModel) -> int:
    """Return the bytes of the largest round's batch on a rank: states, means, jumps and conditions of its rows."""
    latent, n = 4 * math.prod(model.latent_shape), config.student.steps
    encoded = sum(value.numel() * value.element_size() for value in model.encode([model.example]).values())
    sizes = [
        phase.groups * phase.siblings * (latent * (n + 1 + n * (phase.reads_means + phase.asks_jumps)) + encoded)
        for phase in phases_of(config)
        if phase.plays
    ]
    return max(sizes, default=0) // config.learner.workers


class _Parts:
    """Bytes of the networks beside the denoising one: `always` held, and added to `decode` and to `encode`."""

    def __init__(self, model: DiffusionModel) -> None:
        self.always = _bytes(*model.parts.values())
        decode(model, 1)
        self.decode = _bytes(*model.parts.values()) - self.always
        model.encode([model.example])
        self.encode = _bytes(*model.parts.values()) - self.always - self.decode


def _shared(config: Config, teacher: DiffusionModel, student: DiffusionModel) -> int:
    """Return the bytes of weights on an FSDP rank: its shares, the blocks gathered at once, and autocast's copies."""
    shares = _bytes(student.network) + (_bytes(teacher.network) if config.learner.regulariser.kind != "none" else 0)
    held = shares // config.learner.workers + _gathered(student)
    if student.dtype != torch.float32 and not config.student.lora.rank and not config.learner.activation_checkpointing:
        held += 2 * sum(
            p.numel() for p in student.network.parameters()
        )  # autocast's copies, kept for the backward pass
    return held


def _gathered(student: DiffusionModel) -> int:
    """Return the bytes of the gathered weights and gradients: those in no block, and those of the two largest blocks.

    Two blocks are whole at once, because the next one is gathered while one computes.
    """
    counted: set[int] = set()
    sizes = []
    for unit in units(student):
        own = [p for p in unit.parameters() if id(p) not in counted]
        counted |= {id(p) for p in own}
        sizes.append(sum(p.numel() * p.element_size() * (1 + p.requires_grad) for p in own))
    *blocks, rest = sizes
    return rest + sum(sorted(blocks)[-2:])


def _bytes(*networks: Module) -> int:
    return sum(t.numel() * t.element_size() for n in networks for t in (*n.parameters(), *n.buffers()))


def _encoders(config: Config) -> int:
    """Return the bytes of the rewards' own networks, which are float32 as in their files."""
    return _on_disk({str(value) for term in config.reward.terms.values() for value in term.options.values()})


def _on_disk(values: set[str]) -> int:
    """Return the bytes of the weights in the folders among `values`, which may also be names of shipped models."""
    folders = {folder for value in values for folder in (Path(value), SHIPPED / value) if folder.is_dir()}
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*.safetensors"))
