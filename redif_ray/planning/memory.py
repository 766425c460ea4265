"""The memory that each worker of a run needs on its device, computed before anything is loaded.

Networks are built and run on the meta device, whose tensors have sizes but no data, and the bytes of the tensors that
are alive at once are counted. A GPU's allocator and libraries take `OVERHEAD_MB` besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.config import Config
from redif_ray.learning.discriminator import Images, student_loss, teacher_loss
from redif_ray.methods import phases_of
from redif_ray.models.headers import weight_files
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import model_folder, teacher_outline
from redif_ray.models.sharding import units
from redif_ray.models.student import enable_checkpointing, make_student, trainable
from redif_ray.planning import factory
from redif_ray.planning.peak import peak_mb
from redif_ray.rewards.discriminator import DiscriminatorTerm
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
    peak = peak_mb if activations else lambda _: 0.0
    dtype = getattr(torch, config.networks.precision)
    teacher = teacher_outline(config.teacher, dtype=dtype)
    student = make_student(teacher, config.student.lora)
    if config.learner.activation_checkpointing:
        enable_checkpointing(student)
    parameters = trainable(student).values()
    parts = _Parts(teacher)
    network = _bytes(teacher.network) + parts.always
    own = {id(p) for p in teacher.network.parameters()}
    added = sum(p.numel() * p.element_size() for p in student.network.parameters() if id(p) not in own)
    average = 4 if config.learner.ema or config.warm_start.ema else 0
    trained = sum(p.numel() for p in parameters)
    training = trained * (4 + ADAM_BYTES + average)
    scores = any(phase.scores_in_learner for phase in phases_of(config))
    beside = parts.always + (parts.decode + _encoders(config) if scores else 0)
    held = beside + (_held(config, teacher, student) if config.learner.fsdp else _bytes(teacher.network) + added)
    rows = max(config.rollout.unit_groups * config.rollout.siblings, config.evaluation.images_at_once)
    rollout = peak(lambda: _predict(student, rows, config.student.guidance))
    reward = max(peak(lambda: _predict(teacher, rows, config.teacher.guidance)), peak(lambda: _decode(teacher, rows)))
    for parameter in parameters:  # preset, so that the peak leaves out gradients: `training` counts them
        parameter.grad = torch.empty_like(parameter)
    learned = factory.learned_reward(config, teacher, "meta")
    own_learned = _bytes(learned.network) if learned else 0
    judge = _on_disk({config.evaluation.judge})
    learner = max(peak(lambda: _train(student, config)), peak(lambda: _learn(learned, config)))
    training = training // (config.learner.workers if config.learner.fsdp else 1) + own_learned * (4 + ADAM_BYTES) // 4
    read = {role: 0 if gpus else _read(config, teacher) for role, (_, gpus) in workers(config).items()}
    roles = {
        "rollout": Footprint((network + added) / 1e6, 0.0, rollout, start=(network + read["rollout"]) / 1e6),
        "reward": Footprint(
            (network + parts.decode + parts.encode + _encoders(config) + own_learned + judge) / 1e6,
            0.0,
            reward,
            start=(network + read["reward"]) / 1e6,
        ),
        "learner": Footprint(
            (held + own_learned) / 1e6,
            training / 1e6,
            max(learner, _step(config, trained) / 1e6),
            start=(network + max(added + own_learned, read["learner"])) / 1e6,
            batch=_batch(config, teacher) / 1e6,
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
        _decode(model, 1)
        self.decode = _bytes(*model.parts.values()) - self.always
        model.encode([model.example])
        self.encode = _bytes(*model.parts.values()) - self.always - self.decode


def _held(config: Config, teacher: DiffusionModel, student: DiffusionModel) -> int:
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


@torch.no_grad()
def _predict(model: DiffusionModel, rows: int, guidance: float) -> None:
    _forward(model, rows, guidance)


@torch.no_grad()
def _decode(model: DiffusionModel, rows: int) -> None:
    model.decode(torch.empty(rows, *model.latent_shape, device="meta"))


def _train(student: DiffusionModel, config: Config) -> None:
    _forward(student, config.learner.states_at_once, config.student.guidance).sum().backward()


def _learn(term: DiscriminatorTerm | None, config: Config) -> None:
    """Train the learned reward on a microbatch, which peaks at the second gradient of the teacher's images."""
    if term is None:
        return
    rows = min(config.learner.states_at_once, config.rollout.groups)
    term.network.requires_grad_(True)
    images = torch.empty(config.learner.states_at_once, *term.setting.image_shape, device="meta")
    labels = torch.zeros(len(images), dtype=torch.int64, device="meta")
    student_loss(term.network, Images(images, labels, 1))[0].backward()
    loss, _, squares = teacher_loss(term.network, Images(images[:rows], labels[:rows], 1))
    (loss + squares.sum()).backward()


def _forward(model: DiffusionModel, rows: int, guidance: float) -> Tensor:
    """Return a prediction. The network is cast to its dtype of computation, as meta tensors have no autocast."""
    with quiet():
        at_work = replace(model, network=model.network.to(model.dtype))
    with torch.no_grad():
        encoded = {name: value.to("meta") for name, value in at_work.encode([model.example] * rows).items()}
    x = torch.empty(rows, *model.latent_shape, device="meta")
    return at_work.predict(x, model.process.noisiest(), encoded, guidance=guidance).x0
