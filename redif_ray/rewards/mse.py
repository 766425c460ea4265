"""Minus the mean squared error of the pixels."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting


@dataclass(frozen=True, config=OPTIONS)
class Mse:
    """-mean((student - teacher)^2) over channels and pixels; in [-1, 0]."""

    setting: Setting
    name: ClassVar[str] = "mse"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __call__(self, inputs: RewardInputs) -> Tensor:
        return -(inputs.student - inputs.teacher).square().mean((1, 2, 3))
