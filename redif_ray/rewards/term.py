"""The interface of reward terms: a term scores finished images, and higher is better."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from redif_ray.errors import UserError
from redif_ray.types import Condition

T = TypeVar("T")

# every term is a dataclass with this configuration; its fields are the options that a user may set
OPTIONS = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class RewardError(UserError, RuntimeError):
    """A reward that cannot be built or computed; the message names the term, the value and what was expected."""


class Once:
    """A cache of objects that several terms share: the first term to ask for a key makes its object."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of `key`; the first call makes it with `make`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@dataclass(frozen=True, slots=True)
class Setting:
    """The properties that all images of a run share.

    num_classes: number of classes; 0: there are none. image_shape: (C, H, W). captions: True where conditions are text.
    seed: seed of the initial weights of a learned term.
    metadata: what the source of the captions says of each beside it, by caption; None: the run takes none.
    patience_s: seconds that one call of the user's code, or of a service, may take.
    encoders: cache of the terms' networks, so that terms with the same network load it once.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device
    captions: bool = False
    seed: int = 0
    metadata: Mapping[str, Mapping[str, Any]] | None = None
    patience_s: float = 300.0
    encoders: Once = field(default_factory=Once, repr=False, compare=False)

    def metadata_of(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Return the metadata of each row's caption, as copies, which the caller may change."""
        known = self.metadata or {}
        return [copy.deepcopy(dict(known[caption])) for caption in conditions if isinstance(caption, str)]


class Kept(Protocol):
    """A store of features of a work unit's teacher images, [G, ...] float32, by an encoder's `identity`."""

    def get(self, encoder: str) -> np.ndarray | None: ...

    def put(self, encoder: str, features: np.ndarray) -> None: ...


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """The images that reward terms score.

    student: images [B, C, H, W] in [0, 1], float32 or float64. paired: the teacher's, alike; row i of both is of one
    group. None: no term of the run reads them, so they are not made.
    conditions: the B conditions of the rows.
    kept: store that keeps features of the teacher's images for later calls; None: they are not kept.
    """

    student: Tensor
    paired: Tensor | None
    conditions: Sequence[Condition]
    kept: Kept | None = None
    _made: Once = field(init=False, repr=False, compare=False, default_factory=Once)  # `replace` makes an empty one

    @property
    def teacher(self) -> Tensor:
        """The teacher's images, [B, C, H, W]. Raises RewardError where there are none."""
        if self.paired is None:
            raise RewardError("the teacher's images are not made for these terms, and one of them reads them")
        return self.paired

    def of_student(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return encode(student), [B, ...] with its gradient, computed once for all terms with the same `encode`."""
        return self._made.get(("student", encode, torch.is_grad_enabled()), lambda: encode(self.student))

    @torch.no_grad()
    def of_teacher(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return encode(teacher), [B, ...] without a gradient, computed once per group for all terms that share it."""
        images, row = self._made.get("groups", lambda: one_a_group(self.teacher))
        return self._made.get(("teacher", encode), lambda: self._kept(encode, images))[row]

    def _kept(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        encoder = getattr(getattr(encode, "__self__", None), "identity", None)
        if self.kept is None or encoder is None:
            return encode(images)
        features = self.kept.get(encoder)
        if features is None or len(features) != len(images):
            features = encode(images).cpu().numpy()
            self.kept.put(encoder, features)
        return torch.tensor(features, device=images.device)


def one_a_group(images: Tensor) -> tuple[Tensor, Tensor]:
    """Merge equal adjacent rows of [B, ...]; returns the images [G, ...] and each row's index in them, int64 [B].

    Siblings are adjacent rows and share the teacher's image, so one image per group is left.
    """
    groups, row = torch.unique_consecutive(images, dim=0, return_inverse=True)
    return groups, row


class RewardTerm(Protocol):
    """A score of images: an average over pixels and channels, in which no row depends on another."""

    @property
    def differentiable(self) -> bool:
        """True where a gradient flows from the value to `student`."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Names of inputs: `teacher`: the teacher's image; `class`: an int condition; `caption`: a text condition."""
        ...

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the value of each row, [B]; higher is better."""
        ...
