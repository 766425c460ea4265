"""Qwen-Image (Wu et al., arXiv 2508.02324): a transformer trained by flow matching, for captions read by Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from redif_ray.models.protocol import Encoded, ModelError
from redif_ray.models.text import TextModel, shifted_by_tokens
from redif_ray.models.vae import VAE

EDGE = 2  # of the square of latents whose channels are one token's
TOKENS = 512  # most states of a caption, with the five that the prompt's template ends in
NO_CAPTION = " "  # the negative prompt that Qwen-Image's authors sample with


class QwenVAETransformer(TextModel):
    """A transformer whose token is a square of latents of Qwen-Image's VAE, which is one of videos.

    The scheduler may shift the levels by the number of tokens of an image, and the config.json names no size.
    """

    patch: ClassVar[int] = EDGE
    has_frames: ClassVar[bool] = True

    @classmethod
    def shapes(cls, network: Any, vae: Any, where: Path) -> dict[str, Any]:
        channels, expected = network.config.in_channels, vae.z_dim * EDGE**2
        if channels != expected:
            raise ModelError(
                f"{where}: in_channels={channels}; expected {expected}, of a token of {EDGE} x {EDGE} of the VAE's "
                f"latents with {vae.z_dim} channels"
            )
        return {"latent_shape": (vae.z_dim,), "image_shape": (vae.input_channels,)}

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return shifted_by_tokens(scheduler, latent_shape, EDGE)

    @property
    def scale(self) -> int:
        return int(2 ** len(self.frozen.configs[VAE].temperal_downsample))

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def from_vae(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        return (z - mean) / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's latents, [C, 1, 1], on the device of `latents`."""
        config = self.part(VAE).config
        mean, std = torch.tensor([config.latents_mean, config.latents_std], device=latents.device)[..., None, None]
        return mean, std


class QwenImage(QwenVAETransformer):
    """The transformer of QwenImagePipeline: states of Qwen2.5-VL, as many as a caption has, and a mask of them."""

    pipeline_kind: ClassVar[Any] = QwenImagePipeline
    network_kind: ClassVar[Any] = QwenImageTransformer2DModel
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer": TOKENS}

    def encode_prompt(self, caption: str | None) -> Encoded:
        if self.device.type == "meta":  # there the pipeline cannot count the states of a caption
            states = torch.empty(1, TOKENS, self.config.joint_attention_dim, device="meta")
        else:
            prompt = NO_CAPTION if caption is None else caption
            states, _ = self.pipeline.encode_prompt(prompt, device=self.device, max_sequence_length=TOKENS)
        return {"encoder_hidden_states": states, "encoder_hidden_states_mask": states.new_ones(states.shape[:2])}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        tokens = pixel_unshuffle(x, EDGE)
        shapes = [[(1, *tokens.shape[2:])]] * len(x)  # frames, height and width of each image in tokens
        sigma = timestep.float().to(self.dtype) / 1000  # the pipeline rounds twice in 16 bits
        found = self.call_network(tokens.flatten(2).mT, sigma, img_shapes=shapes, **encoded).sample
        return pixel_shuffle(found.mT.unflatten(2, tokens.shape[2:]), EDGE)

    def guided(self, cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
        """Return classifier-free guidance w whose tokens are scaled to the norms that they have in `cond`."""
        own, mixed = (pixel_unshuffle(each, EDGE) for each in (cond, super().guided(cond, uncond, guidance)))
        return pixel_shuffle(mixed * (own.norm(dim=1, keepdim=True) / mixed.norm(dim=1, keepdim=True)), EDGE)

    def pipeline_guidance(self, guidance: float) -> dict[str, Any]:
        scale: dict[str, Any] = {"true_cfg_scale": guidance}
        return scale if guidance == 1 else scale | {"negative_prompt": NO_CAPTION}
