"""The dense anchor: a loss that pulls the student's mean towards the teacher's jump from the same state.

Used alone, this loss is SFD (few-step trajectory regression), which is the warm start; added to the policy gradient, it
keeps the student near the teacher.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional


def anchor_loss(
    mean: Tensor, target: Tensor, kind: Literal["l1", "huber", "mse"], delta: float, gate: Tensor | None = None
) -> Tensor:
    """Return the mean over D of a loss of e = mean - target, [P].

    mean, target: [P, ...], the target detached.
    kind: l1 is |e|; mse is e^2; huber is e^2 / 2 where |e| < delta, else delta (|e| - delta / 2).
    gate: [P], 1 where the anchor applies and 0 elsewhere (RATS: it applies where the teacher's image scores higher).
    Raises ValueError for an unknown kind and for shapes that differ.
    """
    if mean.shape != target.shape:
        raise ValueError(f"anchor target has shape {list(target.shape)}; expected the mean's {list(mean.shape)}")
    if kind == "l1":
        loss = functional.l1_loss(mean, target, reduction="none")
    elif kind == "mse":
        loss = functional.mse_loss(mean, target, reduction="none")
    elif kind == "huber":
        loss = functional.huber_loss(mean, target, reduction="none", delta=delta)
    else:
        raise ValueError(f"anchor loss {kind!r}: expected l1, huber or mse")
    loss = loss.flatten(1).mean(1)
    return loss if gate is None else loss * gate.to(loss)
