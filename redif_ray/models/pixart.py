"""PixArt-alpha (Chen et al., arXiv 2310.00426) and PixArt-sigma (Chen et al., arXiv 2403.04692)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor

from redif_ray.models.folder import variance_preserving
from redif_ray.models.protocol import Encoded
from redif_ray.models.text import TextModel

SIZES = ("resolution", "aspect_ratio")  # of the image; inputs of the network of PixArt-alpha for 1024 pixels


class PixArtSigma(TextModel):
    """The transformer of PixArtSigmaPipeline: cross-attention to the states of T5, under a mask; it predicts epsilon
    and the logarithm of a variance, which deterministic samplers and this package do not use.
    """

    pipeline_kind: ClassVar[Any] = PixArtSigmaPipeline
    network_kind: ClassVar[Any] = PixArtTransformer2DModel
    shifts_latents: ClassVar[bool] = False
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer": 300}

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return variance_preserving(scheduler)

    def size_multiple(self, scale: int) -> int:
        return math.lcm(scale * int(self.config.patch_size), 8)  # the pipeline refuses other sizes, whatever its VAE

    @property
    def pipeline_options(self) -> dict[str, Any]:
        return super().pipeline_options | {"use_resolution_binning": False}

    def encode_prompt(self, caption: str | None) -> Encoded:
        tokens = self.token_limits["tokenizer"]
        if self.device.type == "meta":  # where the encoder's masks cannot be read
            states = torch.empty(1, tokens, self.config.caption_channels, device=self.device)
            mask = states[..., 0]
        else:
            states, mask, _, _ = self.pipeline.encode_prompt(
                caption or "",
                do_classifier_free_guidance=False,
                device=self.device,
                clean_caption=True,  # as in a call of the pipeline; without ftfy and bs4 it does not clean
                max_sequence_length=tokens,
            )
        # Masked states are not read, and zeros take no room in the store.
        encoded = {"encoder_hidden_states": states * mask[..., None], "encoder_attention_mask": mask}
        if not self.network.use_additional_conditions:
            return encoded
        _, height, width = self.image_shape
        sizes = torch.tensor([[height, width, height / width]], dtype=torch.float32, device=self.device)
        return encoded | dict(zip(SIZES, sizes.split([2, 1], 1), strict=True))

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        sizes = {name: encoded.get(name) for name in SIZES}
        states = {name: value for name, value in encoded.items() if name not in SIZES}
        output = self.call_network(x, timestep.float(), added_cond_kwargs=sizes, **states).sample
        return output[:, : x.shape[1]]


class PixArtAlpha(PixArtSigma):
    """The transformer of PixArtAlphaPipeline, which reads captions of 120 tokens."""

    pipeline_kind: ClassVar[Any] = PixArtAlphaPipeline
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer": 120}
