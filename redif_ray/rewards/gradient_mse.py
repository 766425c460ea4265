"""Minus the mean squared error of the image gradients: it compares edges and ignores brightness."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting


@dataclass(frozen=True, config=OPTIONS)
class GradientMse:
    """-(mean((d/dx (student - teacher))^2) + mean((d/dy ...)^2)) / 2 with differences of neighbours; in [-4, 0].

    Raises `RewardError` for images of less than 2 x 2 pixels.
    """

    setting: Setting
    name: ClassVar[str] = "gradient_mse"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        if min(self.setting.image_shape[1:]) < 2:
            raise RewardError(f"images are {self.setting.image_shape}; expected at least 2 x 2 pixels")

    def __call__(self, inputs: RewardInputs) -> Tensor:
        error = inputs.student - inputs.teacher
        return -(error.diff(dim=3).square().mean((1, 2, 3)) + error.diff(dim=2).square().mean((1, 2, 3))) / 2
