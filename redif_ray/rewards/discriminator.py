"""What a discriminator takes an image for, while it learns to tell the student's images from the teacher's."""

from __future__ import annotations

import math
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
    """The logit of a network (`models.discriminator`): above 0 it takes the image for the teacher's. Any real number.

    lr, steps: of Adam, and how many steps it does on the images of a round, all of them each time.
    width: channels of the first layer. r1: weight of the gradient penalty (`learning.discriminator`).
    conditional: judge an image for its class; needs a teacher of classes.

    Built, it is version 0, which answers 0 to every image; `load` puts another version in its place.
    """

    setting: Setting
    lr: Annotated[float, Field(gt=0)] = 2e-4
    steps: Annotated[int, Field(gt=0)] = 4
    width: Annotated[int, Field(gt=0)] = 32
    r1: Annotated[float, Field(ge=0)] = 0.1
    conditional: bool = False
    name: ClassVar[str] = LEARNED
    differentiable: ClassVar[bool] = True
    value_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.conditional and self.setting.num_classes < 1:
            raise RewardError("conditional=true needs class conditions; the teacher has no classes")
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
        """Class of each image, int64 [B]; None where the network asks for none."""
        if not self.conditional:
            return None
        for condition in conditions:
            if type(condition) is not int or not 0 <= condition < self.setting.num_classes:
                raise RewardError(f"condition {condition!r}: conditional=true expects a class of each image")
        return torch.tensor(list(conditions), device=self.setting.device)
