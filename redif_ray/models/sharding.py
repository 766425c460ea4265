"""A network in shares: each rank holds a part of every weight, and gathers a block's to compute with it (FSDP2).

What is gathered is what was shared out, bit for bit, so a network computes as it did. Gradients are summed over ranks.
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
    """Share the network's weights out to all ranks of the process group, in place; its parameters are DTensors then.

    From here on every rank calls the network, forward and backward, equally often. Raises ModelError.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    try:
        for unit in units(model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)  # the root too, or it would keep what it gathered
    except ValueError as error:
        raise ModelError(f"learner.fsdp=true: {error}; expected false for this network") from error
    for module in model.network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the count of all ranks
            module.set_force_sum_reduction_for_comms(True)


def units(model: DiffusionModel) -> list[Module]:
    """What is gathered at a time: blocks, the inner ones first, and the network for what is in none of them."""
    return [*reversed(model.blocks()), model.network]


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU, of shares put together: every rank must ask for the same. keep: False gives none of them."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        if keep:
            found[name] = full.to("cpu", copy=True)
    return found


def share(value: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of `value` where `like`, of its shape, is shared out; else `value`."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shares(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of each of `tensors`, which are named after parameters: `NAME/exp_avg`, `average/NAME`."""
    found = {}
    for key, value in tensors.items():
        name = next((part for part in key.split("/") if part in parameters), None)
        found[key] = share(value, parameters[name] if name else None)
    return found


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it, as a plain tensor of the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
