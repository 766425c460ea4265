"""A network sharded over ranks (FSDP2): a rank holds a shard of every weight and gathers a block's weights to compute.

Gathered weights equal the original ones bit for bit, so the results do not change. Gradients are summed over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module

from redif_ray.models.protocol import DiffusionModel, ModelError


def shard(model: DiffusionModel) -> None:
    """Shard the network's weights over all ranks of the process group, in place; its parameters become DTensors.

    After this call every rank must call the network, forward and backward, equally often. Raises ModelError.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    try:
        for unit in units(model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)  # the root too, or its weights would stay gathered
    except ValueError as error:
        raise ModelError(f"learner.fsdp=true: {error}; expected false for this network") from error
    for module in model.network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are already divided by the count over all ranks
            module.set_force_sum_reduction_for_comms(True)


def units(model: DiffusionModel) -> list[Module]:
    """Return the modules to gather one at a time: blocks, inner first, then the network for all other weights."""
    return [*reversed(model.blocks()), model.network]


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return full copies on the CPU of tensors that may be sharded.

    Every rank must make this call with the same names. keep: False returns {} on this rank.
    """
    copies = {}
    for name, tensor in tensors.items():
        full = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        if keep:
            copies[name] = full.to("cpu", copy=True)
    return copies


def share(value: Tensor, like: Tensor | None) -> Tensor:
    """Return this rank's shard of `value` if `like`, of the same shape, is sharded; else `value`."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shares(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's shard of each tensor; names contain a parameter's: `NAME/exp_avg`, `average/NAME`."""
    own = {}
    for key, value in tensors.items():
        name = next((part for part in key.split("/") if part in parameters), None)
        own[key] = share(value, parameters[name] if name else None)
    return own


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of `tensor` as a plain tensor of the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
