"""Similarity of an image and its caption in CLIP (CLIPScore, Hessel et al., arXiv 2104.08718, unscaled)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.clip_network import DEFAULT_MODEL, ClipCaptions, clip_images
from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting


@dataclass(config=OPTIONS)
class TextImage:
    """Cosine between the CLIP embeddings of the student's image and of its caption; in [-1, 1].

    model: a folder that transformers' save_pretrained wrote, with its tokeniser, or a hub id. batch: images per forward
        pass. Conditions must be captions.
    """

    setting: Setting
    model: str = DEFAULT_MODEL
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "text_image"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"caption"})

    def __post_init__(self) -> None:
        self._images = clip_images(self.model, self.batch, self.setting)
        self._captions = ClipCaptions(self.model, self.setting)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        images = inputs.of_student(self._images.features)
        return F.cosine_similarity(images, self._captions(inputs.conditions).to(images), dim=1)
