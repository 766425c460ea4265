"""Roles that share a GPU take turns on it: who waits keeps in host memory what it has there (`pipeline.colocate`).

While workers play and score a round, the learner waits; while it updates, they do. The coordinator has the workers make
room before it answers the learner, who makes room before it asks. What comes back is what went, bit for bit.
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
    """What a process has on its `device` between its turns, and whether it is there. `seconds`: spent on moving it.

    belongings: asked for at each move, for some may be new. Without `taken` everything stays on the device.
    """

    def __init__(self, device: str, belongings: Callable[[], Iterable[Belonging]], *, taken: bool) -> None:
        self.device, self.belongings, self.taken = device, belongings, taken
        self.awake, self.seconds = True, 0.0

    def wake(self) -> None:
        """Put everything on the device, where it is not there."""
        if not self.awake:
            self._move(self.device)
            self.awake = True

    def rest(self) -> None:
        """Put everything into host memory, and leave to others what it took on the device."""
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
        """A block in which others have the device."""
        self.rest()
        try:
            yield
        finally:
            self.wake()


def home(device: str, offload: bool) -> str:
    """Where a role builds its networks: while they do, it is nobody's turn."""
    return HOST if offload else device


def move(belongings: Iterable[Belonging], device: str) -> None:
    """In place: a parameter stays the object that an optimiser knows. Gradients are let go."""
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
    """Scalars stay: Adam counts its steps on the host."""
    tensors |= {name: value.to(device) for name, value in tensors.items() if value.ndim}
