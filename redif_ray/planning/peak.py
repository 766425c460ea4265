"""The most memory that the tensors of a call take at once, counted without computing anything."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from redif_ray.models.layouts import RememberedLayouts


def peak_mb(call: Callable[[], Any]) -> float:
    """Return the most MB that tensors made by `call` take at once, if a GPU ran it. Use it on meta tensors."""
    with _fused_attention(), _Live() as live:
        call()
    return live.peak / 1e6


class _Live(RememberedLayouts):
    """Counts the bytes of the tensors that operations make: `now`, those still alive, and `peak`, the most at once.

    It is one mode and not two, since each takes tens of microseconds for an operation, of which there are many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.counted: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._add((*args, *kwargs.values()), counts=False)  # a view of a weight is no new memory
        result = self.called(func, args, kwargs)
        self._add((result,))
        return result

    def _add(self, values: Iterable[Any], counts: bool = True) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._add_storage(value.untyped_storage(), counts)
            elif isinstance(value, list | tuple):
                self._add(value, counts)

    def _add_storage(self, storage: Any, counts: bool) -> None:
        key = id(storage)  # tensors that share memory share a storage object
        if key not in self.counted:
            size = storage.nbytes() if counts else 0
            self.now += size
            self.peak = max(self.peak, self.now)
            self.counted[key] = weakref.ref(storage, lambda _: self._free(key, size))

    def _free(self, key: int, size: int) -> None:
        self.counted.pop(key, None)
        self.now -= size


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
