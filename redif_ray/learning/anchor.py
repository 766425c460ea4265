"""The dense anchor: the student's mean towards the teacher's jump from the state the student visited.

Alone it is SFD (few-step trajectory regression), the warm start; beside the policy gradient, an anchor.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional


def anchor_loss(
    mean: Tensor, target: Tensor, kind: Literal["l1", "huber", "mse"], delta: float, gate: Tensor | None = None
) -> Tensor:
    """Mean over D of a loss of e = mean - target, [P]. mean, target: [P, ...], the target detached.

    l1: |e|. mse: e^2. huber: e^2 / 2 where |e| < delta, else delta (|e| - delta / 2).
    gate: [P], 1 where the anchor holds and 0 where it does not (RATS: where the teacher's image scores higher).
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
