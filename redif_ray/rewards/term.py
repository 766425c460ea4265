"""What a reward term is: a score of finished images, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from redif_ray.errors import UserError
from redif_ray.types import Condition

T = TypeVar("T")

# of every term's dataclass: its fields are the options a user may set
OPTIONS = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class RewardError(UserError, RuntimeError):
    """A reward that cannot be built or computed; the message names the term, the value and what was expected."""


class Once:
    """What several terms want and only the first has to make, by key."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for `key`; made now if nothing was."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all images of a run share: `num_classes` (0: none), `image_shape` (C, H, W), the device, and whether
    conditions are captions. seed: of the weights of a term that is learned.

    encoders: the networks of these terms; those that look through the same one load it once.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device
    captions: bool = False
    seed: int = 0
    encoders: Once = field(default_factory=Once, repr=False, compare=False)


class Kept(Protocol):
    """What encoders have made of these groups' teacher images before, [G, ...] float32, by an encoder's `identity`."""

    def get(self, encoder: str) -> np.ndarray | None: ...

    def put(self, encoder: str, features: np.ndarray) -> None: ...


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """`student` and `teacher` [B, C, H, W] in [0, 1], float32 or float64, row by row of one group; B conditions.

    kept: where features of the teacher's images outlive this call; None: nowhere.
    """

    student: Tensor
    teacher: Tensor
    conditions: Sequence[Condition]
    kept: Kept | None = None
    _made: Once = field(init=False, repr=False, compare=False, default_factory=Once)  # not copied by `replace`

    def of_student(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """encode(student), [B, ...] with its gradient, computed once for all terms with the same `encode`."""
        return self._made.get(("student", encode, torch.is_grad_enabled()), lambda: encode(self.student))

    @torch.no_grad()
    def of_teacher(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """encode(teacher), [B, ...] without a gradient, computed once a group and for all terms with that `encode`."""
        images, row = self._made.get("groups", lambda: one_a_group(self.teacher))
        return self._made.get(("teacher", encode), lambda: self._kept(encode, images))[row]

    def _kept(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        encoder = getattr(getattr(encode, "__self__", None), "identity", None)
        if self.kept is None or encoder is None:
            return encode(images)
        found = self.kept.get(encoder)
        if found is None or len(found) != len(images):
            found = encode(images).cpu().numpy()
            self.kept.put(encoder, found)
        return torch.tensor(found, device=images.device)


def one_a_group(images: Tensor) -> tuple[Tensor, Tensor]:
    """Equal neighbours of [B, ...] once, [G, ...], and each row's place among them, int64 [B].

    Siblings share the teacher's image, and lie side by side.
    """
    groups, row = torch.unique_consecutive(images, dim=0, return_inverse=True)
    return groups, row


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
        """`teacher`: the group's teacher image. `class`: an integer condition. `caption`: a condition that is text."""
        ...

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """[B], higher is better."""
        ...
