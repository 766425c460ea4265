"""Calls on the device "meta", whose tensors have sizes but no data, without computing the same sizes again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # private: no public hook sees what each operation makes

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class RememberedLayouts(TorchDispatchMode):
    """Remembers the layouts of what operations on meta tensors return, by the layouts of their arguments.

    Python computes the layouts of most operations, which takes most of the time of a call; a network repeats its
    blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layouts: dict[Any, list[Layout] | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.called(func, args, kwargs or {})

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the results of an operation."""
        if any(each.alias_info is not None for each in func._schema.returns):  # a view, or an argument written to
            return func(*args, **kwargs)
        key = func, _key(args), _key(kwargs)
        if key not in self.layouts:
            result = func(*args, **kwargs)
            self.layouts[key] = _layouts(result)
            return result
        if (layouts := self.layouts[key]) is None:
            return func(*args, **kwargs)
        made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in layouts]
        return made[0] if len(func._schema.returns) == 1 else tuple(made)


def _layouts(result: Any) -> list[Layout] | None:
    """Return the layouts of an operation's results; None where one of them is no meta tensor."""
    results = list(result) if isinstance(result, tuple) else [result]
    if not all(isinstance(each, Tensor) and each.device.type == "meta" for each in results):
        return None
    return [(each.size(), each.stride(), each.dtype) for each in results]


def _key(value: Any) -> Any:
    """Return what an argument contributes to the layouts of an operation's results."""
    if isinstance(value, Tensor):
        return Tensor, value.size(), value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(_key(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return type(value), value
