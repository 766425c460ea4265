"""The processes that train one student together (ranks), and their collective operations."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from redif_ray.learning.step import AllReduce


class Ranks:
    """This process is number `rank` of `world`. All ranks must call its methods, in the same order."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def all_reduce(self) -> AllReduce | None:
        """Return `sum`, for an update to call; None for a single rank."""
        return self.sum if self.world > 1 else None

    def sum(self, tensors: list[Tensor]) -> None:
        """Sum tensors over ranks, in place: gradients of disjoint pairs, each already divided by the global count.

        Tensors of one dtype are sent together, in that dtype. Gradients of sharded parameters (DTensor) are left alone:
        the backward pass has summed them.
        """
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if not isinstance(tensor, DTensor):
                by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_dtype.values():
            flat = torch.cat([t.reshape(-1) for t in alike])
            dist.all_reduce(flat)
            for tensor, summed in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether `flag` is True on any rank."""
        flags = torch.tensor([float(flag)], device=device)
        self.sum([flags])
        return bool(flags)

    def wait(self) -> None:
        """Block until all ranks have called this."""
        if self.world > 1:
            dist.barrier()
