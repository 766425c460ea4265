"""CLIP's embedding as a judge's features: of images, and of how well each fits its caption.

Jayasumana et al. (arXiv 2401.09603) compare sets of images in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module, functional

from redif_ray.rewards.clip_network import ClipCaptions, clip_images
from redif_ray.rewards.pretrained import find_model
from redif_ray.rewards.term import Setting


class ClipFeatures:
    """A CLIP that transformers saved, a shipped one's name or a hub id, for images of `image_shape` (C, H, W).

    What reads captions is loaded on the CPU, when it is first used. Raises RewardError for what is not a CLIP, or
    cannot see such images.
    """

    def __init__(self, model: str, image_shape: Sequence[int], device: str | torch.device = "cpu") -> None:
        self.image_shape = tuple(int(n) for n in image_shape)
        self.model, self.name = model, Path(find_model(model)).name
        self._images = clip_images(model, 64, self._setting(device))

    def _setting(self, device: str | torch.device) -> Setting:
        channels, height, width = self.image_shape
        return Setting(0, (channels, height, width), torch.device(device), captions=True)

    @property
    def network(self) -> Module:
        """Of images."""
        return self._images.network

    @cached_property
    def captions(self) -> ClipCaptions:
        """Raises RewardError for a CLIP without a tokeniser of its own."""
        return ClipCaptions(self.model, self._setting("cpu"))

    @torch.no_grad()
    def embedding(self, images: Tensor) -> Tensor:
        """[B, D] of root mean square 1, from [B, C, H, W] float in [0, 1]."""
        found = functional.normalize(self._images.features(images), dim=1)
        return found * found.shape[1] ** 0.5

    @torch.no_grad()
    def caption_cosine(self, embedding: Tensor, captions: Sequence[str]) -> Tensor:
        """[B]: the cosine of each image, whose embedding is given, and its caption."""
        return functional.cosine_similarity(embedding, self.captions(captions), dim=1)
