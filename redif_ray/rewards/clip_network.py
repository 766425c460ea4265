"""CLIP (Radford et al., arXiv 2103.00020): images and captions in one embedding space.

The image network and the text network load separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from redif_ray.rewards.preparation import Preparation
from redif_ray.rewards.pretrained import (
    ImageEncoder,
    find_model,
    load_config,
    load_network,
    load_preparation,
)
from redif_ray.rewards.term import RewardError, Setting
from redif_ray.rewards.tokenizers import load_tokenizer

DEFAULT_MODEL = "openai/clip-vit-large-patch14"
PREPARATION = Preparation(resize=224, crop=(224, 224))
FILES = "tokenizer.json, or vocab.json and merges.txt"
REMEMBERED = 4096  # captions whose embeddings stay in memory, some kilobytes each


def clip_images(model: str, batch: int, setting: Setting) -> ImageEncoder:
    """Return the encoder of image embeddings after the visual projection, [B, D], not normalised.

    model: a folder or a hub id. batch: images per forward pass. Raises `RewardError` if the model cannot be loaded.
    """
    model = find_model(model)
    encoder = setting.encoders.get(("clip images", model), lambda: _load_images(model, setting))
    return encoder.at_most(batch)


def _load_images(model: str, setting: Setting) -> ImageEncoder:
    config = load_config(model, ("clip",))
    return image_encoder(model, config, load_preparation(model, PREPARATION), setting)


def image_encoder(
    model: str,
    config: Any,
    preparation: Preparation,
    setting: Setting,
    weights: Mapping[str, Tensor] | None = None,
) -> ImageEncoder:
    """Return a new encoder of image embeddings, as `clip_images` does, of a configuration that is loaded already.

    weights: the network's, by transformers' names; None: the model's own.
    """
    preparation.check(setting.image_shape)
    tower = _tower(config, "vision_config")
    network = load_network("CLIPVisionModelWithProjection", model, tower, weights).to(setting.device)
    return ImageEncoder("clip", network, preparation, lambda pixels: network(pixel_values=pixels).image_embeds)


def _tower(config: Any, name: str) -> Any:
    tower = getattr(config, name)
    tower.projection_dim = config.projection_dim  # old files give the dimension in the common part only
    return tower


class ClipCaptions:
    """The encoder of caption embeddings after the text projection, [B, D], not normalised.

    Captions are embedded one at a time, so that an embedding does not depend on its batch, and are cut to the network's
    length. weights: the network's, by transformers' names; None: the model's own. Raises `RewardError` if the network
    or the tokeniser cannot be loaded.
    """

    def __init__(self, model: str, setting: Setting, weights: Mapping[str, Tensor] | None = None) -> None:
        model = find_model(model)
        tower = _tower(load_config(model, ("clip",)), "text_config")
        self.tokenizer = load_tokenizer("CLIPTokenizer", "model", model, FILES)
        if len(self.tokenizer) != tower.vocab_size:
            raise RewardError(
                f"model={model!r}: the tokeniser knows {len(self.tokenizer)} tokens, the network "
                f"{tower.vocab_size}; copy its {FILES}"
            )
        self.length, self.device = tower.max_position_embeddings, setting.device
        self.network = load_network("CLIPTextModelWithProjection", model, tower, weights).to(setting.device)
        self._embedding = lru_cache(REMEMBERED)(self._embed)

    def __call__(self, captions: Sequence[Any]) -> Tensor:
        return torch.cat([self._embedding(caption) for caption in captions])

    @torch.no_grad()
    def _embed(self, caption: str) -> Tensor:
        tokens = self.tokenizer([caption], truncation=True, max_length=self.length, return_tensors="pt")
        return self.network(**tokens.to(self.device)).text_embeds
