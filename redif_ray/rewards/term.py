"""What a reward term is: a score of finished images, higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import ConfigDict
from torch import Tensor

from redif_ray.errors import UserError
from redif_ray.types import Condition

# of every term's dataclass: its fields are the options a user may set
OPTIONS = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class RewardError(UserError, RuntimeError):
    """A reward that cannot be built or computed; the message names the term, the value and what was expected."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all images of a run share: `num_classes` (0: unconditional), `image_shape` (C, H, W) and the device."""

    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """`student` and `teacher` [B, C, H, W] in [0, 1], float32 or float64, row by row of one group; B conditions."""

    student: Tensor
    teacher: Tensor
    conditions: Sequence[Condition]


class RewardTerm(Protocol):
    """A score of images that averages over pixels and channels and shares nothing between rows."""

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool:
        """Whether a gradient flows from the value to `student`."""
        ...

    @property
    def value_range(self) -> tuple[float, float]:
        """Bounds of the value; infinite where there is none."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """`teacher`: the group's teacher image. `class`: an integer condition."""
        ...

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """[B], higher is better."""
        ...
