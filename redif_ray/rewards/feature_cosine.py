"""Cosine similarity of the features of an encoder."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.encoders import load_encoder
from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting


@dataclass(config=OPTIONS)
class FeatureCosine:
    """Mean over positions of the cosine between the student's and the teacher's feature vectors; in [-1, 1].

    encoder: `classifier-a` or `efficientnet-lite0`. path: folder of another classifier; None: the shipped one.
    pooled: True: average the features over positions first, and take one cosine.
    A position where either image's features are all zero counts as 0.
    """

    setting: Setting
    encoder: str = "classifier-a"
    path: str | None = None
    pooled: bool = False
    name: ClassVar[str] = "feature_cosine"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        self._encoder = load_encoder(self.encoder, self.path, self.setting)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        student, teacher = (of(self._encoder.features) for of in (inputs.of_student, inputs.of_teacher))
        return mean_cosine(student, teacher, pooled=self.pooled)


def mean_cosine(x: Tensor, y: Tensor, *, pooled: bool) -> Tensor:
    """Return the mean cosine, [B], of two feature maps [B, F, h, w]; `pooled`: the cosine of their means."""
    if pooled:
        x, y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    return F.cosine_similarity(x, y, dim=1).mean((1, 2))
