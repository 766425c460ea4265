"""Similarity of two images in the embedding of CLIP (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.clip_network import DEFAULT_MODEL, clip_images
from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting


@dataclass(config=OPTIONS)
class Clip:
    """Cosine between the CLIP image embeddings of the student's and the teacher's image; in [-1, 1].

    model: a folder that transformers' save_pretrained wrote, or a hub id. batch: images per forward pass.
    """

    setting: Setting
    model: str = DEFAULT_MODEL
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "clip"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        self._images = clip_images(self.model, self.batch, self.setting)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        student, teacher = (of(self._images.features) for of in (inputs.of_student, inputs.of_teacher))
        return F.cosine_similarity(student, teacher, dim=1)
