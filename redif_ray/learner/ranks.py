"""The processes that train one student together (ranks), and their collective operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from redif_ray.learning.gradients import AllReduce


class Sum:
    """The sum over all ranks, of gradients of disjoint pairs that are each divided by the global count already.

    Tensors of one dtype are sent together, in that dtype.
    """

    def __call__(self, tensors: list[Tensor]) -> None:
        for tensor, summed in zip(tensors, self.begin(tensors)(), strict=True):
            tensor.copy_(summed)

    def begin(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        flats = {dtype: torch.cat([t.reshape(-1) for t in alike]) for dtype, alike in by_dtype.items()}
        works = [dist.all_reduce(flat, async_op=True) for flat in flats.values()]

        def end() -> list[Tensor]:
            for work in works:
                work.wait()
            sums = {dtype: iter(flat.split([t.numel() for t in by_dtype[dtype]])) for dtype, flat in flats.items()}
            return [next(sums[tensor.dtype]).view_as(tensor) for tensor in tensors]

        return end


class Ranks:
    """This process is number `rank` of `world`. All ranks must call its methods, in the same order."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def all_reduce(self) -> AllReduce | None:
        """Return the sum over all ranks; None for a single rank."""
        return Sum() if self.world > 1 else None

    def sum(self, tensors: list[Tensor]) -> None:
        """Sum tensors over ranks, in place."""
        if self.all_reduce is not None:
            self.all_reduce(tensors)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether `flag` is True on any rank."""
        flags = torch.tensor([float(flag)], device=device)
        self.sum([flags])
        return bool(flags)

    def wait(self) -> None:
        """Block until all ranks have called this."""
        if self.world > 1:
            dist.barrier()
