"""Human preference predicted by ImageReward (Xu et al., arXiv 2304.05977): BLIP's text network looks at the image.

The network is BLIP's (Li et al., arXiv 2201.12086) ViT-L and its BERT with cross-attention, of which transformers'
classes are used; its sizes are read from the shapes of the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.aesthetic import read_head
from redif_ray.rewards.preparation import Preparation
from redif_ray.rewards.pretrained import ImageEncoder, find_model, load_file_of, load_network
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.rewards.tokenizers import load_tokenizer

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores on the authors' data
TOKENS = 35  # of a caption; the rest is cut
OWN_WORDS = 2  # [DEC] and [ENC], which captions do not have
FILES = "tokenizer.json, or vocab.txt"
HEAD_WIDTH = 64  # of both transformers
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
NAMES = {
    r"^cls_token$": "embeddings.class_embedding",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^patch_embed\.proj": "embeddings.patch_embedding",
    r"^norm\.": "post_layernorm.",
    r"^blocks\.": "encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.qkv": ".self_attn.qkv",
    r"\.attn\.proj": ".self_attn.projection",
}  # of the image network's weights, by regular expressions for their names in ImageReward's file


@dataclass(config=OPTIONS)
class ImageReward:
    """ImageReward's score of the student's image for its caption, about 0 on average and 1 in standard deviation.

    model: ImageReward's weights by their names in its own file: a .safetensors file, or a folder or hub id with
        model.safetensors. base: the BERT in lower case whose tokeniser is read, and no weights, a folder or hub id.
        batch: images per forward pass. Conditions must be captions.
    """

    setting: Setting
    model: str = "RE-N-Y/ImageReward"
    base: str = "google-bert/bert-base-uncased"
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "image_reward"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"caption"})

    def __post_init__(self) -> None:
        weights, device = load_file_of(self.model), self.setting.device
        try:
            vision, text = vision_config(_below(weights, VISION)), text_config(weights)
            head = read_head(_below(weights, HEAD), self.model)
        except KeyError as error:
            raise RewardError(
                f"model={self.model!r} has no weight {error}; expected those of ImageReward by their names in its "
                "own file, in safetensors"
            ) from error
        preparation = Square(vision.image_size, crop=(vision.image_size, vision.image_size))
        preparation.check(self.setting.image_shape)
        named = {_renamed(name): weight for name, weight in _below(weights, VISION).items()}
        network = load_network("BlipVisionModel", self.model, vision, named).to(device)
        self._images = ImageEncoder(
            self.name, network, preparation, lambda pixels: network(pixel_values=pixels).last_hidden_state
        ).at_most(self.batch)
        self._text = load_network("BlipTextModel", self.model, text, _below(weights, TEXT), add_pooling_layer=False).to(
            device
        )
        self._head = [(weight.to(device), bias.to(device)) for weight, bias in head]
        self._words = load_words(self.base, text.vocab_size)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        seen = inputs.of_student(self._images.features)
        captions = [str(caption) for caption in inputs.conditions]
        words = self._words(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        parts = zip(*(rows.split(self.batch) for rows in (words.input_ids, words.attention_mask, seen)), strict=True)
        return torch.cat([self._score(*(rows.to(seen.device) for rows in part)) for part in parts])

    def _score(self, tokens: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        states = self._text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        x = states[:, 0]
        for weight, bias in self._head:
            x = F.linear(x, weight.to(x), bias.to(x))
        return (x.squeeze(1) - MEAN) / STD


@plain_dataclass(frozen=True)
class Square(Preparation):
    """The middle of an image, cut out as torchvision does, which rounds half a pixel to the even one."""

    def _margin(self, beyond: int) -> int:
        return round(beyond / 2)


def vision_config(weights: Mapping[str, Tensor]) -> Any:
    """Return transformers' configuration of the image network with these weights, by their own names."""
    from transformers import BlipVisionConfig

    width, patch = weights["patch_embed.proj.weight"].shape[0], weights["patch_embed.proj.weight"].shape[-1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_count(weights, "blocks"),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * math.isqrt(weights["pos_embed"].shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def text_config(weights: Mapping[str, Tensor]) -> Any:
    """Return transformers' configuration of the text network in all of ImageReward's weights."""
    from transformers import BlipTextConfig

    own = _below(weights, TEXT)
    vocabulary, width = own["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=own["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(own["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_count(own, r"encoder\.layer"),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=len(own["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,
    )


def load_words(model: str, vocabulary: int) -> Any:
    """Load BERT's tokeniser. Raises `RewardError` unless it knows the `vocabulary` but BLIP's own two words."""
    words = load_tokenizer("BertTokenizer", "base", find_model(model, "base"), FILES)
    if not vocabulary - OWN_WORDS <= len(words) <= vocabulary:
        raise RewardError(
            f"base={model!r} knows {len(words)} tokens, the network {vocabulary}, {OWN_WORDS} of them BLIP's own; "
            f"copy its {FILES}"
        )
    return words


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _count(weights: Mapping[str, Tensor], blocks: str) -> int:
    return len({match[1] for name in weights if (match := re.match(rf"{blocks}\.(\d+)\.", name))})


def _renamed(name: str) -> str:
    for own, theirs in NAMES.items():
        name = re.sub(own, theirs, name)
    return name
