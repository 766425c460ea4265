"""The memory that each worker of a run needs on its device, computed before anything is loaded.

Networks are built and run on the meta device, whose tensors have sizes but no data, and the bytes of the tensors that
are alive at once are counted. A GPU's allocator and libraries take `OVERHEAD_MB` besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from redif_ray.config import Config
from redif_ray.learning.gradients import copies
from redif_ray.methods import Phase, phases_of
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.quantization import saved_bytes
from redif_ray.models.registry import teacher_outline
from redif_ray.models.student import enable_checkpointing, make_student, trainable
from redif_ray.planning import factory
from redif_ray.planning.activations import decode, decode_and_back, encode_images, learn, predict, ready, train
from redif_ray.planning.peak import peak_mb
from redif_ray.planning.rounds import teacher_block
from redif_ray.planning.weight_bytes import (
    ADAM_BYTES,
    PartBytes,
    bytes_on_disk,
    encoder_bytes,
    file_bytes,
    fsdp_rank_bytes,
    mapped_bytes,
    moment_bytes,
    network_bytes,
)

OVERHEAD_MB = 1200  # CUDA's context, cuBLAS and cuDNN workspaces, fragments


@dataclass(frozen=True, slots=True)
class Footprint:
    """MB of one worker: `weights` of all networks, `training`, and `activations` of a call at most.

    training: gradients, moments, average, and copies of gradients that ranks are summing.
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
    network. image: number of values of an image. export: MB of the process that exports the student.
    """

    roles: dict[str, Footprint]
    trained: int
    network: int
    image: int
    export: float


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
        self.student = make_student(factory.start(config, self.teacher), config.student.lora)
        if config.learner.activation_checkpointing:
            enable_checkpointing(self.student)
        self.learned = factory.learned_reward(config, self.teacher, "meta")
        lora = next((p.second_network for p in phases_of(config) if p.second_network is not None), None)
        self.second = None if lora is None else make_student(self.teacher, lora)
        if self.second is not None and config.learner.activation_checkpointing:
            enable_checkpointing(self.second)
        self.held = self._held(config)
        if self.second is not None:
            ready(self.second)
        self.cast = ready(self.student) + ready(self.teacher)

    def footprints(self, config: Config) -> Footprints:
        """Return the footprints with the activations of a configuration's batches."""
        batch, states = config.evaluation.images_at_once, min(config.learner.states_at_once, _most_states(config))
        phases, rows = phases_of(config), max(config.rollout.unit_groups * config.rollout.siblings, batch)
        held = states * max((phase.steps_held for phase in phases), default=1)
        made = max(rows, *(teacher_block(config, phase) for phase in phases if phase.teacher_images), 0)
        learned = partial(learn, self.learned, states, min(states, config.rollout.groups))
        calls = {
            "rollout": [partial(predict, self.student, rows, config.student.guidance)],
            "reward": [
                partial(predict, self.teacher, made, config.teacher.guidance),
                partial(decode, self.teacher, made),
            ],
            "learner": [partial(train, self.student, held, config.student.guidance), learned],
        }
        back = {
            "reward": max((phase.differentiates for phase in phases), default=0),
            "learner": states * any(phase.scores_in_learner for phase in phases),
        }
        for role, images in back.items():
            calls[role] += [partial(decode_and_back, self.teacher, images)] if images else []
        if any(phase.encodes_in_worker for phase in phases):
            calls["reward"].append(partial(encode_images, self.teacher, 1))
        if any(phase.encodes_images for phase in phases):
            calls["learner"].append(partial(encode_images, self.teacher, states))
            calls["learner"].append(partial(predict, self.teacher, states, config.teacher.guidance))
        if self.second is not None:
            calls["learner"].append(partial(train, self.second, states, 1.0))
        peaks = {role: max(map(peak_mb, made)) for role, made in calls.items()}
        if held > states and back["learner"]:  # the steps are held while the gradient goes through the decoder
            own = partial(train, self.student, held, config.student.guidance)
            peaks["learner"] = peak_mb(own) + peak_mb(partial(decode_and_back, self.teacher, states))
        peaks["rollout"] += self.cast / 1e6
        roles = {role: replace(held, activations=peaks[role]) for role, held in self.held.roles.items()}
        return replace(self.held, roles=roles)

    def _held(self, config: Config) -> Footprints:
        teacher, student, parts = self.teacher, self.student, PartBytes(self.teacher)
        network = network_bytes(teacher.network) + parts.always
        own = {id(p) for p in teacher.network.parameters()}
        added = sum(p.numel() * p.element_size() for p in student.network.parameters() if id(p) not in own)
        average = 4 if config.learner.ema or config.warm_start.ema else 0
        weights = list(trainable(student).values())
        trained, moments = sum(p.numel() for p in weights), moment_bytes(config.learner, weights)
        saved = saved_bytes(teacher, config.networks.quantize)
        if config.student.init is not None:  # the student has a base of its own beside the teacher
            saved *= 2
        phases = phases_of(config)
        scores = any(phase.scores_in_learner for phase in phases)
        vae = parts.decode if scores or any(phase.encodes_images for phase in phases) else 0
        beside = parts.always + vae + (encoder_bytes(config) if scores else 0)
        held = beside + (
            fsdp_rank_bytes(config, teacher, student)
            if config.learner.fsdp
            else network_bytes(teacher.network) + added - saved
        )
        learned = network_bytes(self.learned.network) if self.learned else 0
        ranks = config.learner.workers if config.learner.fsdp else 1
        training = (trained * (4 + average) + moments) // ranks + learned * (4 + ADAM_BYTES) // 4
        second_weights = [] if self.second is None else list(trainable(self.second).values())
        second = sum(p.numel() for p in second_weights)
        training += (
            4 * second
            + moment_bytes(config.learner, second_weights)
            + 4 * trained * max((p.earlier_students for p in phases), default=0)
        )
        reward = (
            network
            + parts.decode
            + parts.encode
            + encoder_bytes(config)
            + learned
            + bytes_on_disk({config.evaluation.judge, str(config.evaluation.diversity.encoder)})
        )
        files = file_bytes(config, teacher)
        mapped = mapped_bytes(files, network_bytes(teacher.network))
        read = {role: 0 if gpus else mapped for role, (_, gpus) in workers(config).items()}
        starts = {
            "rollout": read["rollout"],
            "reward": read["reward"],
            "learner": max(added + learned, read["learner"]),
        }
        if config.learner.workers > 1 and not config.learner.fsdp:
            training += max(copies(weights), copies(second_weights))
        rollout = network + added - saved
        start = {role: (network + extra) / 1e6 for role, extra in starts.items()}
        if saved:  # the host holds the whole base before it is quantized, a GPU never does
            start |= {role: 0.0 for role, (_, gpus) in workers(config).items() if gpus and role != "reward"}
        batch = _batch(config, teacher) / 1e6
        roles = {
            "rollout": Footprint(rollout / 1e6, 0.0, 0.0, start=start["rollout"]),
            "reward": Footprint(reward / 1e6, 0.0, 0.0, start=start["reward"]),
            "learner": Footprint(
                (held + learned + 4 * second) / 1e6, training / 1e6, 0.0, start=start["learner"], batch=batch
            ),
        }
        numbers = sum(p.numel() for p in teacher.network.parameters())
        beside_it = 0 if config.student.init is None else 4 * numbers  # the teacher, whose other parts are exported
        export = (4 * numbers + beside_it + mapped_bytes(files, 4 * numbers)) / 1e6
        return Footprints(roles, trained, numbers, math.prod(teacher.image_shape), export)


def _most_states(config: Config) -> int:
    """Return the number of states that a rank can have of a round."""
    rows = max((_most_groups(config, phase) * phase.siblings for phase in phases_of(config)), default=1)
    return rows * config.student.steps


def _most_groups(config: Config, phase: Phase) -> int:
    """Return the number of groups that a rank can have of a round, whose work units are dealt to the ranks in turn."""
    units = -(-phase.groups // phase.unit_groups)
    return min(phase.groups, -(-units // config.learner.workers) * phase.unit_groups)


def _batch(config: Config, model: DiffusionModel) -> int:
    """Return the bytes of the largest round's batch on a rank: states, means, jumps and conditions of its rows.

    A phase that trains on images has their latents, noise, noised latents and targets, and conditions twice.
    """
    latent, n = 4 * math.prod(model.latent_shape), config.student.steps
    encoded = sum(value.numel() * value.element_size() for value in model.encode([model.example]).values())
    sizes = [
        _most_groups(config, phase)
        * phase.siblings
        * (latent * (n + 1 + n * (phase.reads_means + phase.asks_jumps)) + encoded)
        for phase in phases_of(config)
        if phase.plays
    ]
    sizes += [
        _most_groups(config, phase) * (5 * latent + 2 * encoded) for phase in phases_of(config) if phase.encodes_images
    ]
    return max(sizes, default=0)
