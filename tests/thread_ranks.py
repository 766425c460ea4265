"""Ranks that are threads of one process, with a sum over them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from redif_ray.learning.gradients import AllReduce


class ThreadSum:
    """The sum of one rank. sums: tensors of each rank in its current call."""

    def __init__(self, rank: int, inbox: list[list[Tensor]], barrier: threading.Barrier) -> None:
        self.rank, self.inbox, self.barrier = rank, inbox, barrier

    def __call__(self, tensors: list[Tensor]) -> None:
        self.inbox[self.rank] = [t.clone() for t in tensors]
        self.barrier.wait()
        for mine, *theirs in zip(tensors, *self.inbox, strict=True):
            mine.copy_(sum(theirs))
        self.barrier.wait()

    def begin(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        summed = [t.clone() for t in tensors]
        self(summed)
        return lambda: summed


def run_ranks(rank: Callable[[int, AllReduce], Any], world: int = 2) -> list[Any]:
    """Return what `rank(number, sum over ranks)` returns on each of `world` threads."""
    barrier, inbox, found = threading.Barrier(world, timeout=20), [list[Tensor]() for _ in range(world)], {}

    def run(number: int) -> None:
        found[number] = rank(number, ThreadSum(number, inbox, barrier))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(world)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return [found[number] for number in range(world)]
