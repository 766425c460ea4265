"""A learned reward: the logit of a discriminator that is trained to tell the student's images from the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.config import LEARNED
from redif_ray.models.discriminator import Discriminator
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.types import Condition


@dataclass(config=OPTIONS)
class DiscriminatorTerm:
    """The logit of a network (`models.discriminator`); any real number, above 0 for images like the teacher's.

    lr: Adam's learning rate. steps: Adam's steps per round, each on all images of the round.
    width: channels of the first layer. r1: weight of the gradient penalty (`learning.discriminator`).
    conditional: True: the network also gets the image's class; needs a teacher with classes.

    A new term holds version 0 of the weights, which gives 0 for every image; `load` replaces them.
    Raises `RewardError` for `conditional` without classes.
    """

    setting: Setting
    lr: Annotated[float, Field(gt=0)] = 2e-4
    steps: Annotated[int, Field(gt=0)] = 4
    width: Annotated[int, Field(gt=0)] = 32
    r1: Annotated[float, Field(ge=0)] = 0.1
    conditional: bool = False
    name: ClassVar[str] = LEARNED
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.conditional and self.setting.num_classes < 1:
            raise RewardError("conditional=true needs class conditions; the teacher has no classes: set it false")
        self.network = (
            Discriminator(
                self.setting.image_shape,
                width=self.width,
                seed=self.setting.seed,
                num_classes=self.setting.num_classes if self.conditional else 0,
            )
            .to(self.setting.device)
            .requires_grad_(False)
        )

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(weights))

    def __call__(self, inputs: RewardInputs) -> Tensor:
        return self.network(inputs.student.float(), self.labels(inputs.conditions))

    def labels(self, conditions: Sequence[Condition]) -> Tensor | None:
        """Return the class of each image, int64 [B], or None if not `conditional`. Raises `RewardError`."""
        if not self.conditional:
            return None
        for condition in conditions:
            if type(condition) is not int or not 0 <= condition < self.setting.num_classes:
                classes = self.setting.num_classes
                raise RewardError(f"condition {condition!r}: conditional=true expects classes in [0, {classes})")
        return torch.tensor(list(conditions), device=self.setting.device)
