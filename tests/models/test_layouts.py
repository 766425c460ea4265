"""Remembered layouts are those that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redif_ray.models.layouts import RememberedLayouts


class Seen(TorchDispatchMode):
    """Lists the layouts of all that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, list | tuple) else [result]:
            if isinstance(each, Tensor):
                self.layouts.append((str(func), (each.size(), each.stride(), each.dtype, each.device.type)))
        return result


def layouts(call: Callable[[], object], *, remembered: bool) -> list[tuple[str, Any]]:
    with RememberedLayouts() if remembered else nullcontext(), Seen() as seen:
        call()
    return seen.layouts


def network() -> None:
    """Run a pass and its gradient twice through two equal blocks, with batches of two sizes, views and both dtypes."""
    blocks = [torch.nn.Conv2d(4, 4, 3, padding=1, device="meta") for _ in range(2)]
    norm, linear = torch.nn.GroupNorm(2, 4, device="meta"), torch.nn.Linear(8, 8, device="meta")
    for rows in (2, 3, 2):
        x = torch.empty(rows, 4, 8, 8, device="meta").to(memory_format=torch.channels_last)
        for block in blocks:
            x = norm(block(x)).chunk(2, 1)[0].repeat(1, 2, 1, 1).transpose(2, 3) + x.half().float()
        values, indices = linear(x).max(-1)
        values.add_(1.0).sum().backward()
        assert indices.dtype == torch.int64
        assert torch.ones(rows).sum().item() == rows  # a tensor with data keeps its own


def test_layouts_are_those_that_torch_computes() -> None:
    plain, remembered = layouts(network, remembered=False), layouts(network, remembered=True)
    assert plain == remembered and len(plain) > 100
