"""Copies from main memory to a device, which a GPU makes while the CPU goes on."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: str | torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return `values` on `device`, in `dtype` where one is given; those of the device already are not copied.

    From memory that the kernel may move, a GPU copies only once its earlier work is done, and the CPU waits for that;
    from pinned memory the copy is queued behind that work. So the CPU queues the network calls of the next steps while
    the GPU computes.
    """
    target = torch.device(device)
    if values.device.type == target.type or target.type == "mps":  # MPS may read memory that has been let go
        return values.to(target, dtype)
    values = values.to(dtype) if dtype is not None else values
    return (values.pin_memory() if target.type == "cuda" else values).to(target, non_blocking=True)


def picked(values: Tensor, *indices: Tensor) -> Tensor:
    """Return `values[indices]` at int64 `indices` in main memory, which a GPU gets as `sent` sends them."""
    return values[tuple(sent(index, values.device) for index in indices)]
