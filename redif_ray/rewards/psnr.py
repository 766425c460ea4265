"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting

FLOOR = 1e-6  # least mse, since identical images would have an infinite value: 60 dB, a quarter of an 8-bit grey level


@dataclass(frozen=True, config=OPTIONS)
class Psnr:
    """-10 log10(max(mse, 1e-6)) in dB for a peak of 1; in [0, 60], without a gradient at the cap of 60 dB."""

    setting: Setting
    name: ClassVar[str] = "psnr"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __call__(self, inputs: RewardInputs) -> Tensor:
        mse = (inputs.student - inputs.teacher).square().mean((1, 2, 3))
        return -10 * mse.clamp(min=FLOOR).log10()
