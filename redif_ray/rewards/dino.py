"""Similarity of features of DINOv2 (Oquab et al., arXiv 2304.07193) or DINOv3 (Siméoni et al., arXiv 2508.10104)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from redif_ray.rewards.pretrained import ImageEncoder, find_model, load_config, load_network, load_preparation
from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
PREPARATION = Preparation(resize=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)


@dataclass(config=OPTIONS)
class Dino:
    """Mean over patches of the cosine between the student's and the teacher's patch features; in [-1, 1].

    model: a folder that transformers' save_pretrained wrote, or a hub id. batch: images per forward pass.
    pooled: True: one cosine, of the class tokens, instead of the mean over patches.
    crop: True: cut the middle out, as DINOv2's own image processor does; the reward then ignores the border.
    """

    setting: Setting
    model: str = "facebook/dinov2-base"
    pooled: bool = False
    crop: bool = False
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "dino"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        self._encoder = dino_tokens(self.model, self.crop, self.setting).at_most(self.batch)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        student, teacher = (of(self._encoder.features) for of in (inputs.of_student, inputs.of_teacher))
        cosines = F.cosine_similarity(student, teacher, dim=2)
        return cosines[:, 0] if self.pooled else cosines[:, 1:].mean(1)


def dino_tokens(model: str, crop: bool, setting: Setting) -> ImageEncoder:
    """Return the encoder of the class token and the patch features, [B, 1 + patches, D], without register tokens.

    Raises `RewardError` if the model cannot be loaded or does not take these images.
    """
    model = find_model(model)
    config = load_config(model, KINDS)
    preparation = load_preparation(model, PREPARATION)
    preparation = preparation if crop else preparation.whole
    preparation.check(setting.image_shape)
    network = load_network("AutoModel", model, config).to(setting.device)
    registers = getattr(config, "num_register_tokens", 0)  # register tokens follow the class token

    def forward(pixels: Tensor) -> Tensor:
        tokens = network(pixel_values=pixels).last_hidden_state
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)

    return ImageEncoder("dino", network, preparation, forward)
