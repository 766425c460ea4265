"""The processes that train one student together (ranks), and what they bring together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from redif_ray.learning.step import AllReduce


class Ranks:
    """This process is number `rank` of `world`. What it calls here, all of them do, in the same order."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def all_reduce(self) -> AllReduce | None:
        """`sum`, as an update takes it; None for one that has nobody to add up with."""
        return self.sum if self.world > 1 else None

    def sum(self, tensors: list[Tensor]) -> None:
        """Sum over ranks, in place: gradients of disjoint pairs, each already divided by the global count.

        Those of shares were summed in the backward pass.
        """
        tensors = [t for t in tensors if not isinstance(t, DTensor)]
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is set on one of them."""
        flags = torch.tensor([float(flag)], device=device)
        self.sum([flags])
        return bool(flags)

    def wait(self) -> None:
        """Until all of them are here."""
        if self.world > 1:
            dist.barrier()
