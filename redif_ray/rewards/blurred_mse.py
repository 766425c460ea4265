"""Minus the mean squared error of the blurred images: it compares where things are and ignores texture."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.gaussian import gaussian_window, smooth
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting


@dataclass(frozen=True, config=OPTIONS)
class BlurredMse:
    """-mean(blur(student - teacher)^2) with a Gaussian of `sigma` pixels, cut at 3 sigma; in [-1, 0].

    The border is padded by reflection. Raises `RewardError` if 3 sigma is not less than the image's shorter edge.
    """

    setting: Setting
    sigma: Annotated[float, Field(gt=0)] = 2.0
    name: ClassVar[str] = "blurred_mse"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        edge = min(self.setting.image_shape[1:])
        if self._radius >= edge:
            raise RewardError(f"sigma={self.sigma:g} reaches {self._radius} pixels; expected less than the edge {edge}")

    @property
    def _radius(self) -> int:
        return math.ceil(3 * self.sigma)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        error = F.pad(inputs.student - inputs.teacher, [self._radius] * 4, mode="reflect")  # blurring is linear
        return -smooth(error, gaussian_window(2 * self._radius + 1, self.sigma, error)).square().mean((1, 2, 3))
