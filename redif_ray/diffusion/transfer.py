"""Copies from main memory to a device, which a GPU makes while the CPU goes on."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: str | torch.device) -> Tensor:
    """Return `values`, a tensor in main memory, on `device`.

    From memory that the kernel may move, a GPU copies only once its earlier work is done, and the CPU waits for that;
    from pinned memory the copy is queued behind that work. So the CPU draws the noise of a step while the GPU computes
    the step before.
    """
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
