"""The student: a copy of the teacher's network, trained as a whole or by low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Module, Parameter

from redif_ray.config import Lora
from redif_ray.models.protocol import DiffusionModel, ModelError, first_weight, is_finite
from redif_ray.models.sharding import local, share, whole

ADAPTER = "student"  # peft's name of the adapters
# Layers that autocast rounds on every device, and to which adapters are added.
ROUNDED_BY_AUTOCAST = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def make_student(teacher: DiffusionModel, lora: Lora, *, in_place: bool = False) -> DiffusionModel:
    """Return a student that predicts as `teacher` does, with own trainable float32 weights, and freeze the teacher.

    in_place: a student without adapters takes the teacher's network, which a caller without need of a teacher gives it.

    In float32 the predictions agree bit for bit; in 16 bits, up to rounding. With lora.rank > 0 all other weights
    are the teacher's own tensors and each target layer W becomes W + (alpha / rank) B A, B = 0 at first.
    Raises ModelError naming targets that match no layer.
    """
    teacher.network.requires_grad_(False).eval()
    if lora.rank:
        network = _shared_copy(teacher.network)
        _add_adapters(network, lora)
    else:
        network = teacher.network if in_place else copy.deepcopy(teacher.network)
        network = network.float().requires_grad_(True)
    return replace(teacher, network=network.eval())


def _shared_copy(network: Module) -> Any:
    """Return a copy of the modules that shares the tensors of `network`."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, tensors)


def check_targets(network: Module, lora: Lora) -> None:
    """Raise ModelError where one of `lora.targets` matches no layer of the network that a student would adapt.

    The same goes for a target that matches what is no layer, such as `to_out`, a list of a layer and a dropout.
    """
    if not lora.rank:
        return
    named = list(network.named_modules())
    found = {target: [module for name, module in named if _matches(name, target)] for target in lora.targets}
    absent = [target for target, modules in found.items() if not modules]
    if absent:
        layers = {_leaf(n) for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
        raise ModelError(
            f"student.lora.targets={absent} match no layer of {type(network).__name__}, which has {sorted(layers)}"
        )
    for target, modules in found.items():
        if other := next((module for module in modules if not isinstance(module, ROUNDED_BY_AUTOCAST)), None):
            inner = sorted({_leaf(n) for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)})
            near = [name for name in inner if name.startswith(f"{target}.")] or inner
            raise ModelError(
                f"student.lora.targets={target!r} matches a {type(other).__name__}, to which no adapter can be added; "
                f"expected a linear or convolution layer, such as {', '.join(near[:3])}"
            )


def _add_adapters(network: Module, lora: Lora) -> None:
    check_targets(network, lora)
    alpha: Any = lora.alpha or lora.rank  # peft annotates an int and divides a float
    # On the device "meta" initial values would take seconds and be lost.
    has_data = next(network.parameters()).device.type != "meta"
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(lora.targets), init_lora_weights=has_data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # A is the same in every process; published weights replace it anyhow
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for parameter in (p for p in network.parameters() if p.requires_grad):
        parameter.data = parameter.data.float()


def _matches(name: str, target: str) -> bool:
    """Tell whether peft puts adapters of `target` on the module of that dotted name."""
    return name == target or name.endswith(f".{target}")


def _leaf(name: str) -> str:
    """Return the last name of a dotted path, and the index of a list's member with it: `to_q`, `to_out.0`."""
    head, _, last = name.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdigit() else last


def initial_weights(teacher: DiffusionModel, lora: Lora) -> dict[str, Tensor]:
    """Return the weights with which a student of `teacher` starts, as `get_weights` would of `make_student`."""
    if lora.rank:
        return get_weights(make_student(teacher, lora))
    return {name: parameter.detach().float() for name, parameter in teacher.network.named_parameters()}


def trained_numbers(network: Module, lora: Lora) -> int:
    """Count the weights that a student of `network` would train: all, or those of its adapters."""
    if not lora.rank:
        return sum(p.numel() for p in network.parameters())
    adapted = (
        module for name, module in network.named_modules() if any(_matches(name, target) for target in lora.targets)
    )
    return sum(lora.rank * (w.shape[0] + w[0].numel()) for w in (module.weight for module in adapted))


def enable_checkpointing(student: DiffusionModel) -> None:
    """Keep few activations and compute the others again in the backward pass (Chen et al., arXiv 1604.06174).

    Raises ModelError for a network that does not support this.
    """
    try:
        student.checkpoint_blocks()
    except ValueError as error:
        raise ModelError(f"learner.activation_checkpointing=true: {error}; expected false for this network") from error


def trainable(student: DiffusionModel) -> dict[str, Parameter]:
    """Return the parameters that the optimiser updates, by name, in the network's order."""
    return {name: p for name, p in student.network.named_parameters() if p.requires_grad}


def autocast_weights(student: DiffusionModel) -> list[str]:
    """Return the names of the trainable weights that the network uses only after rounding to 16 bits.

    These are the weights of plain linear and convolution layers under autocast, which rounds them in every call; no
    network may switch autocast off around such a layer. Norms, embeddings and weights outside of such layers are used
    in float32. So are adapters, since a student with adapters computes without autocast.
    """
    network = student.network
    if first_weight(network).dtype == student.dtype:
        return []
    rounded, other = set[int](), set[int]()
    for module in network.modules():
        held = {id(parameter) for parameter in module.parameters(recurse=False)}
        (rounded if type(module) in ROUNDED_BY_AUTOCAST else other).update(held)
    return [name for name, parameter in trainable(student).items() if id(parameter) in rounded - other]


def get_weights(student: DiffusionModel) -> dict[str, Tensor]:
    """Return CPU copies of the trainable weights, which are all that differs from the teacher.

    The copies of a sharded student are full tensors, so every rank must make this call.
    """
    return whole(trainable(student))


@torch.no_grad()
def set_weights(student: DiffusionModel, weights: Mapping[str, Tensor]) -> None:
    """Load `weights`, from `get_weights`. Raises ModelError, changing nothing, unless they fit exactly."""
    own = trainable(student)
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise ModelError(
            f"weights of another student: missing {missing[:3]} ({len(missing)}), unknown {extra[:3]} "
            f"({len(extra)}); expected the {len(own)} trainable weights of this configuration's student.lora"
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ModelError(f"weight {name} has shape {list(value.shape)}; expected {list(own[name].shape)}")
        if not is_finite(value):
            raise ModelError(f"weight {name} is not finite; lower learner.lr and resume from an earlier checkpoint")
    for name, parameter in own.items():
        parameter.copy_(share(weights[name], parameter))


@contextmanager
def with_weights(student: DiffusionModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the student `weights`, from `get_weights`, in this block, and its own weights again after it."""
    own = {name: local(p).detach().to("cpu", copy=True) for name, p in trainable(student).items()}
    set_weights(student, weights)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in trainable(student).items():
                local(parameter).copy_(own[name])


def has_adapters(student: DiffusionModel) -> bool:
    return any(isinstance(module, LoraLayer) for module in student.network.modules())


def merged(student: DiffusionModel) -> Any:
    """Return a plain diffusers network with each adapter added to its layer: W + (alpha / rank) B A.

    It shares all other tensors with the student's network, which stays as it is.
    """
    own: dict[int, Any] = {id(p): Parameter(p.data, requires_grad=False) for p in student.network.parameters()}
    own |= {id(buffer): buffer for buffer in student.network.buffers()}
    network = copy.deepcopy(student.network, own)  # shares all tensors until a layer is merged
    adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)  # into a new tensor
        _replace(network, name, module.get_base_layer())
    return network


def _replace(network: Module, name: str, layer: Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)  # ModuleList too: its children are named "0", "1", ...
