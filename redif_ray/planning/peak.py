"""The most memory that the tensors of a call take at once, counted without computing anything."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # private: no public hook sees what each operation makes

from redif_ray.models.layouts import RememberedLayouts


def peak_mb(call: Callable[[], Any]) -> float:
    """Return the most MB that tensors made by `call` take at once, if a GPU ran it. Use it on meta tensors."""
    with _fused_attention(), RememberedLayouts(), _Live() as live:
        call()
    return live.peak / 1e6


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make: `now`, those still alive, and `peak`, the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors([args, kwargs]):
            self._add(tensor, counts=False)  # a view of a weight is no new memory
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._add(tensor)
        return result

    def _add(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if counts else 0  # tensors that share memory share a storage object
        if key not in self.counted:
            self.counted.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.now -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or the results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


class _Attention(torch.autograd.Function):
    """Attention with the memory of a GPU's fused kernels, which never hold the matrix of attention weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    functional, name = torch.nn.functional, "scaled_dot_product_attention"
    before = getattr(functional, name)
    setattr(functional, name, lambda query, key, value, *_, **__: _Attention.apply(query, key, value))
    try:
        yield
    finally:
        setattr(functional, name, before)
