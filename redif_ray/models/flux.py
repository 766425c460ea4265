"""FLUX.1 (Black Forest Labs, 2024; arXiv 2506.15742 describes its network): a transformer of packed latents, which was
trained by flow matching.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from redif_ray.models.protocol import Encoded
from redif_ray.models.text import TextModel, shifted_by_tokens

PATCH = 2  # latents along the edge of a token
T5_TOKENS = 512
T5_TOKENS_SCHNELL = 256


class PackedTransformer(TextModel):
    """A transformer whose token is a square of 2 x 2 latents, with rotary embeddings of its row and column.

    The scheduler may shift the levels by the number of tokens of an image, and the config.json names no size.
    """

    patch: ClassVar[int] = PATCH

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return shifted_by_tokens(scheduler, latent_shape, PATCH)

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        cells = positions(x)
        text = cells.new_zeros(encoded["encoder_hidden_states"].shape[1], 3)
        found = self.call_network(packed(x), timestep.float() / 1000, img_ids=cells, txt_ids=text, **encoded)
        return unpacked(found.sample, x.shape)


class Flux(PackedTransformer):
    """The transformer of FluxPipeline: states of T5, to which it attends, and the pooled state of CLIP.

    FLUX.1-dev embeds its guidance (Meng et al., arXiv 2210.03142). A network that does not, as FLUX.1-schnell, is
    guided by its prediction for an empty caption; it reads 256 tokens of T5, with which FLUX.1-schnell was trained,
    where FLUX.1-dev reads 512.
    """

    pipeline_kind: ClassVar[Any] = FluxPipeline
    network_kind: ClassVar[Any] = FluxTransformer2DModel
    names: ClassVar[tuple[str, ...]] = ("vae", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.config.guidance_embeds)

    @property
    def token_limits(self) -> Mapping[str, int]:
        return {"tokenizer_2": T5_TOKENS if self.embeds_guidance else T5_TOKENS_SCHNELL}

    def pipeline_guidance(self, guidance: float) -> dict[str, Any]:
        tokens = {"max_sequence_length": self.token_limits["tokenizer_2"]}
        if self.embeds_guidance:
            return {"guidance_scale": guidance} | tokens
        return {"true_cfg_scale": guidance, "negative_prompt": ""} | tokens

    def encode_prompt(self, caption: str | None) -> Encoded:
        states, pooled, _ = self.pipeline.encode_prompt(
            caption or "", None, device=self.device, max_sequence_length=self.token_limits["tokenizer_2"]
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}


def positions(x: Tensor) -> Tensor:
    """Return the position ids (0, row, column) of the tokens of latents x [B, C, H, W], int64 [H W / 4, 3]."""
    rows, columns = (torch.arange(edge // PATCH, device=x.device) for edge in x.shape[2:])
    return torch.cartesian_prod(rows.new_zeros(1), rows, columns)


def packed(x: Tensor) -> Tensor:
    """Return the tokens [B, H W / 4, 4 C] of latents x [B, C, H, W], row by row; a token has its channels outermost."""
    b, c, h, w = x.shape
    squares = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // PATCH**2, c * PATCH**2)


def unpacked(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Return the latents of `shape` [B, C, H, W] whose `packed` tokens these are."""
    b, c, h, w = shape
    squares = tokens.reshape(b, h // PATCH, w // PATCH, c, PATCH, PATCH)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(shape)
