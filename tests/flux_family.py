"""FLUX.1 as a family of a user's own, `teacher.family=tests/flux_family.py:load`: packed latents, embedded guidance."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from redif_ray.diffusion.levels import FlowMatching
from redif_ray.models.components import Parts
from redif_ray.models.folder import load_network, load_scheduler, read_index
from redif_ray.models.protocol import Encoded
from redif_ray.models.text import TextModel

NAMES = ("vae", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
TOKENS, EDGE = 512, 128  # of T5's states; edge of the latents


class Flux(TextModel):
    pipeline_kind = FluxPipeline
    token_limits = {"tokenizer_2": TOKENS}  # noqa: RUF012

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        network = load_network(FluxTransformer2DModel, folder, "transformer", dtype)
        scheduler, index = load_scheduler(folder), read_index(folder)
        frozen, c = Parts(folder, index, dtype, NAMES), scheduler.config
        shift = calculate_shift(EDGE**2 // 4, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
        return cls(
            network=network,
            component="transformer",
            num_classes=None,
            index=index,
            frozen=frozen,
            dtype=dtype,
            process=FlowMatching(scale=c.num_train_timesteps, shift=exp(shift) if c.use_dynamic_shifting else c.shift),
            prediction_type="flow_prediction",
            clip=None,
            scheduler=scheduler,
            latent_shape=(network.config.in_channels // 4, EDGE, EDGE),
            image_shape=(3, 8 * EDGE, 8 * EDGE),
        )

    def make_pipeline(self, **parts: Any) -> FluxPipeline:
        return FluxPipeline(**parts, vae=None, transformer=None, scheduler=self.scheduler)

    def encode_prompt(self, caption: str | None) -> Encoded:
        states, pooled, _ = self.pipeline.encode_prompt(
            caption or "", None, device=self.device, max_sequence_length=TOKENS
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        b, c, h, w = x.shape
        found = self.call_network(
            FluxPipeline._pack_latents(x, b, c, h, w),
            timestep.float() / 1000,
            guidance=torch.full((b,), 3.5, device=x.device),
            img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype),
            txt_ids=torch.zeros(encoded["encoder_hidden_states"].shape[1], 3, device=x.device),
            **encoded,
        ).sample
        return found.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


load = Flux.load
