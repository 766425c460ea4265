"""The bytes of the weights that a worker holds, counted on networks without weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn import Module, Parameter

from redif_ray.config import Config, Learner
from redif_ray.methods import phases_of
from redif_ray.models.folder import component_folder
from redif_ray.models.headers import weight_files
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_folder
from redif_ray.models.sharding import units
from redif_ray.models.student import trained_numbers
from redif_ray.planning.activations import decode
from redif_ray.rewards.pretrained import SHIPPED

ADAM_BYTES = 8  # for each weight: two float32 moments
LEAST_8BIT, BLOCK_8BIT = 4096, 256  # numbers of a weight whose moments have 8 bits, and of a block of them


class PartBytes:
    """Bytes of the networks beside the denoising one: `always` held, and added to `decode` and to `encode`."""

    def __init__(self, model: DiffusionModel) -> None:
        self.always = network_bytes(*model.parts.values())
        decode(model, 1)
        self.decode = network_bytes(*model.parts.values()) - self.always
        model.encode([model.example])
        self.encode = network_bytes(*model.parts.values()) - self.always - self.decode


def fsdp_rank_bytes(config: Config, teacher: DiffusionModel, student: DiffusionModel) -> int:
    """Return the bytes of weights on an FSDP rank: its shares, the blocks gathered at once, and autocast's copies."""
    shares = network_bytes(student.network) + (
        network_bytes(teacher.network) if config.learner.regulariser.kind != "none" else 0
    )
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


def moment_bytes(learner: Learner, weights: Iterable[Parameter]) -> int:
    """Return the bytes of AdamW's two moments of these weights."""
    sizes = [weight.numel() for weight in weights]
    if learner.optimizer == "adamw":
        return ADAM_BYTES * sum(sizes)
    blocks = (-(-size // BLOCK_8BIT) for size in sizes)  # each with a float32 scale for both moments
    each = zip(sizes, blocks, strict=True)
    return sum(2 * size + 8 * count if size >= LEAST_8BIT else ADAM_BYTES * size for size, count in each)


def network_bytes(*networks: Module) -> int:
    return sum(t.numel() * t.element_size() for n in networks for t in (*n.parameters(), *n.buffers()))


def encoder_bytes(config: Config) -> int:
    """Return the bytes of the rewards' own networks, which are float32 as in their files.

    Of the model that a term calls `base` no weights are read.
    """
    options = [term.options.items() for term in config.reward.terms.values()]
    return bytes_on_disk({str(value) for each in options for option, value in each if option != "base"})


def bytes_on_disk(values: set[str]) -> int:
    """Return the bytes of the weights in the files and folders among `values`, also in shipped models of such names."""
    places = {place for value in values for place in (Path(value), SHIPPED / value)}
    files = {path for place in places if place.is_dir() for path in place.rglob("*.safetensors")}
    files |= {place for place in places if place.suffix == ".safetensors" and place.is_file()}
    return sum(path.stat().st_size for path in files)


def file_bytes(config: Config, model: DiffusionModel) -> int:
    """Return the bytes of the files of the teacher's network."""
    place = component_folder(teacher_folder(config.teacher), model.component)
    return sum(path.stat().st_size for path in weight_files(place))


def mapped_bytes(files: int, network: int) -> int:
    """Return the bytes of the files if their dtype is not the network's, so that a process on CPUs holds both."""
    return 0 if abs(files - network) < 0.1 * network else files


def second_numbers(config: Config, teacher: DiffusionModel) -> int:
    """Return the number of trained weights of the network that a phase trains beside the student, 0 without one."""
    adapters = [phase.second_network for phase in phases_of(config)]
    return max((trained_numbers(teacher.network, each) for each in adapters if each is not None), default=0)
