"""CLIP's image embedding as a judge's features, and its score of how well an image fits a caption.

Jayasumana et al. (arXiv 2401.09603) compare sets of images in CLIP's embedding.
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
    """A CLIP model as the encoder of a judge.

    model: folder that transformers saved, name of a shipped CLIP, or hub id.
    image_shape: (C, H, W) of the images.
    device: device of the image network. The text network is loaded on the CPU at its first use.
    Raises RewardError if the model is not a CLIP or does not take images of this shape.
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
        """Return the network that embeds images."""
        return self._images.network

    @cached_property
    def captions(self) -> ClipCaptions:
        """Load the network that embeds captions. Raises RewardError for a CLIP without a tokeniser of its own."""
        return ClipCaptions(self.model, self._setting("cpu"))

    @torch.no_grad()
    def embedding(self, images: Tensor) -> Tensor:
        """Return features [B, D] of root mean square 1, of images [B, C, H, W] float in [0, 1]."""
        unit = functional.normalize(self._images.features(images), dim=1)
        return unit * unit.shape[1] ** 0.5

    @torch.no_grad()
    def caption_cosine(self, embedding: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the cosine [B] between each image's embedding [B, D] and its caption's."""
        return functional.cosine_similarity(embedding, self.captions(captions), dim=1)
