"""Roles that share a GPU take turns on it, and keep their tensors in host memory between (`pipeline.colocate`).

While workers roll out and score a round, the learner waits; while the learner updates, the workers wait. The learner
frees the GPU before it asks for a round, and the coordinator makes the workers free it before it answers. The tensors
come back bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

HOST = "cpu"
Belonging: TypeAlias = Module | Optimizer | dict[str, Tensor]


class Offload:
    """Moves the belongings of a process between its device and host memory; `seconds` is the time that this took.

    belongings: function that returns them, called at each move because there may be new ones. taken: False where the
    process has the device for itself, so that everything stays there.
    """

    def __init__(self, device: str, belongings: Callable[[], Iterable[Belonging]], *, taken: bool) -> None:
        self.device, self.belongings, self.taken = device, belongings, taken
        self.awake, self.seconds = True, 0.0

    def wake(self) -> None:
        """Move everything to the device, unless it is there."""
        if not self.awake:
            self._move(self.device)
            self.awake = True

    def rest(self) -> None:
        """Move everything to host memory and free its device memory for others."""
        if self.awake and self.taken:
            self._move(HOST)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.awake = False

    def _move(self, device: str) -> None:
        started = time.perf_counter()
        move(self.belongings(), device)
        self.seconds += time.perf_counter() - started

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Rest while the block runs, so that others have the device."""
        self.rest()
        try:
            yield
        finally:
            self.wake()


def home(device: str, offload: bool) -> str:
    """Return the device on which a role builds its networks: the host if roles take turns, as no turn has begun."""
    return HOST if offload else device


def move(belongings: Iterable[Belonging], device: str) -> None:
    """Move belongings to `device` in place, so that an optimiser keeps its parameters; gradients are dropped."""
    for thing in belongings:
        if isinstance(thing, Module):
            thing.zero_grad(set_to_none=True)
            thing.to(device)
        elif isinstance(thing, Optimizer):
            for state in thing.state.values():
                _move(state, device)
        else:
            _move(thing, device)


def _move(tensors: dict[str, Tensor], device: str) -> None:
    """Move tensors to `device`, except scalars and numbers: Adam counts its steps on the host."""
    tensors |= {name: v.to(device) for name, v in tensors.items() if isinstance(v, Tensor) and v.ndim}
