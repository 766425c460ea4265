"""CLIP's embedding as a judge's features: of images, and of how well each fits its caption.

Jayasumana et al. (arXiv 2401.09603) compare sets of images in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from redif_ray.rewards.clip_network import ClipCaptions, clip_images
from redif_ray.rewards.pretrained import find_model
from redif_ray.rewards.term import Setting


class ClipFeatures:
    """A CLIP that transformers saved, a shipped one's name or a hub id, for images of `image_shape` (C, H, W)."""

    def __init__(self, model: str, image_shape: Sequence[int]) -> None:
        """Raises RewardError for what is not a CLIP, or cannot see such images."""
        channels, height, width = self.image_shape = tuple(int(n) for n in image_shape)
        setting = Setting(0, (channels, height, width), torch.device("cpu"), captions=True)
        self.name = Path(find_model(model)).name
        self._images, self._captions = clip_images(model, 64, setting), ClipCaptions(model, setting)

    @torch.no_grad()
    def embedding(self, images: Tensor) -> Tensor:
        """[B, D] of root mean square 1, from [B, C, H, W] float in [0, 1]."""
        found = functional.normalize(self._images.features(images), dim=1)
        return found * found.shape[1] ** 0.5

    @torch.no_grad()
    def caption_cosine(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """[B]: the cosine of each image and its caption."""
        return functional.cosine_similarity(self._images.features(images), self._captions(captions), dim=1)
