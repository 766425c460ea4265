"""Stable Diffusion 1.5 and 2.1 (Rombach et al., arXiv 2112.10752) and SDXL (Podell et al., arXiv 2307.01952)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from redif_ray.models.folder import load_scheduler, variance_preserving
from redif_ray.models.protocol import Encoded, ModelError
from redif_ray.models.text import TextModel
from redif_ray.models.vae import VAE

STATISTICS = ("latents_mean", "latents_std")  # of a VAE's channels, in its config.json


class StableDiffusion(TextModel):
    """The UNet of StableDiffusionPipeline: cross-attention to one text encoder's states; it predicts epsilon or v."""

    pipeline_kind: ClassVar[Any] = StableDiffusionPipeline
    network_kind: ClassVar[Any] = UNet2DConditionModel
    network_folder: ClassVar[str] = "unet"
    shifts_latents: ClassVar[bool] = False

    @classmethod
    def read_scheduler(cls, folder: Path) -> Any:
        scheduler = load_scheduler(folder)
        if scheduler.config.get("clip_sample", False):
            scheduler.register_to_config(clip_sample=False)  # diffusers does so in this pipeline, too
        return scheduler

    @classmethod
    def shapes(cls, network: Any, vae: Any, where: Path) -> dict[str, Any]:
        if network.config.time_cond_proj_dim is not None:
            raise ModelError(
                f"{where}: time_cond_proj_dim={network.config.time_cond_proj_dim}, a network "
                "that is conditioned on its guidance and so distilled already; expected null"
            )
        return super().shapes(network, vae, where)

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return variance_preserving(scheduler)

    def size_multiple(self, scale: int) -> int:
        return math.lcm(scale, 8)  # the pipeline refuses other sizes, whatever its VAE

    def make_pipeline(self, **parts: Any) -> Any:
        return StableDiffusionPipeline(
            **parts,
            vae=None,
            unet=None,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def encode_prompt(self, caption: str | None) -> Encoded:
        states, _ = self.pipeline.encode_prompt(caption or "", self.device, 1, False)
        return {"encoder_hidden_states": states}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        return self.call_network(x, timestep.float(), **encoded).sample


class StableDiffusionXL(StableDiffusion):
    """The UNet of StableDiffusionXLPipeline: states of two text encoders, one pooled state, the image's size."""

    pipeline_kind: ClassVar[Any] = StableDiffusionXLPipeline
    names: ClassVar[tuple[str, ...]] = ("vae", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")

    @classmethod
    def read_scheduler(cls, folder: Path) -> Any:
        return load_scheduler(folder)

    @classmethod
    def shapes(cls, network: Any, vae: Any, where: Path) -> dict[str, Any]:
        statistics = [vae.get(name) for name in STATISTICS]
        if all(statistics) and not (_are_numbers(statistics, vae.latent_channels) and min(statistics[1]) > 0):
            raise ModelError(
                f"{where.parent / 'vae' / 'config.json'}: {' and '.join(STATISTICS)} are {statistics}; expected "
                f"{vae.latent_channels} numbers each, the latter positive, or null"
            )
        return super().shapes(network, vae, where)

    def make_pipeline(self, **parts: Any) -> Any:
        return StableDiffusionXLPipeline(
            **parts,
            vae=None,
            unet=None,
            scheduler=self.scheduler,
            add_watermarker=False,
            force_zeros_for_empty_prompt=self.index.get("force_zeros_for_empty_prompt", True),
        )

    def encode_prompt(self, caption: str | None) -> Encoded:
        encodings = self.pipeline.encode_prompt(caption or "", device=self.device, do_classifier_free_guidance=True)
        states, no_states, pooled, no_pooled = encodings
        _, height, width = self.image_shape
        return {
            "encoder_hidden_states": no_states if caption is None else states,
            "text_embeds": no_pooled if caption is None else pooled,
            "time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=self.device),
        }

    def to_vae(self, latents: Tensor) -> Tensor:
        if (statistics := self._statistics(latents)) is None:
            return super().to_vae(latents)
        mean, std = statistics
        return latents * std / self.part(VAE).config.scaling_factor + mean

    def from_vae(self, z: Tensor) -> Tensor:
        if (statistics := self._statistics(z)) is None:
            return super().from_vae(z)
        mean, std = statistics
        return (z - mean) * self.part(VAE).config.scaling_factor / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and standard deviation of the VAE's latents, [C, 1, 1]; None where its config lacks either."""
        statistics = [self.part(VAE).config.get(name) for name in STATISTICS]
        if not all(statistics):
            return None
        mean, std = torch.tensor(statistics, dtype=latents.dtype, device=latents.device)[..., None, None]
        return mean, std

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        added = {name: encoded[name] for name in ("text_embeds", "time_ids")}
        states = encoded["encoder_hidden_states"]
        return self.call_network(x, timestep.float(), encoder_hidden_states=states, added_cond_kwargs=added).sample


def _are_numbers(lists: Sequence[Any], length: int) -> bool:
    """Tell whether each of `lists` holds `length` numbers."""
    return all(
        isinstance(each, list | tuple) and len(each) == length and all(isinstance(n, int | float) for n in each)
        for each in lists
    )
