"""CLIP (Radford et al., arXiv 2103.00020): images and captions in one embedding space.

The image network and the text network load separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from redif_ray.errors import words_of
from redif_ray.rewards.preparation import Preparation
from redif_ray.rewards.pretrained import (
    ImageEncoder,
    at_hub,
    find_model,
    is_local,
    load_config,
    load_network,
    load_preparation,
)
from redif_ray.rewards.term import RewardError, Setting

DEFAULT_MODEL = "openai/clip-vit-large-patch14"
PREPARATION = Preparation(resize=224, crop=(224, 224))
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
    preparation = load_preparation(model, PREPARATION)
    preparation.check(setting.image_shape)
    network = load_network("CLIPVisionModelWithProjection", model, _tower(config, "vision_config")).to(setting.device)
    return ImageEncoder("clip", network, preparation, lambda pixels: network(pixel_values=pixels).image_embeds)


def _tower(config: Any, name: str) -> Any:
    tower = getattr(config, name)
    tower.projection_dim = config.projection_dim  # old files give the dimension in the common part only
    return tower


class ClipCaptions:
    """The encoder of caption embeddings after the text projection, [B, D], not normalised.

    Captions are embedded one at a time, so that an embedding does not depend on its batch, and are cut to the network's
    length. Raises `RewardError` if the network or the tokeniser cannot be loaded.
    """

    def __init__(self, model: str, setting: Setting) -> None:
        import transformers

        model = find_model(model)
        source, revision = at_hub(model)
        config = load_config(model, ("clip",))
        tower = _tower(config, "text_config")
        try:
            self.tokenizer = transformers.CLIPTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=False, local_files_only=is_local(model)
            )
        except Exception as error:  # tokenizers raises plain exceptions over a broken file
            raise RewardError(
                f"model={model!r} has no CLIP tokeniser: {words_of(error)}; copy its tokenizer.json, "
                "or vocab.json and merges.txt"
            ) from error
        if len(self.tokenizer) != tower.vocab_size:
            raise RewardError(
                f"model={model!r}: the tokeniser knows {len(self.tokenizer)} tokens, the network "
                f"{tower.vocab_size}; copy its tokenizer.json, or vocab.json and merges.txt"
            )
        self.length, self.device = tower.max_position_embeddings, setting.device
        self.network = load_network("CLIPTextModelWithProjection", model, tower).to(setting.device)
        self._embedding = lru_cache(REMEMBERED)(self._embed)

    def __call__(self, captions: Sequence[Any]) -> Tensor:
        return torch.cat([self._embedding(caption) for caption in captions])

    @torch.no_grad()
    def _embed(self, caption: str) -> Tensor:
        tokens = self.tokenizer([caption], truncation=True, max_length=self.length, return_tensors="pt")
        return self.network(**tokens.to(self.device)).text_embeds
