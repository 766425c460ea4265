"""Stable Diffusion pipelines of the published sizes with random weights, for where the real ones cannot be had.

What a network costs does not depend on its weights. Tokenisers know characters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CHARACTERS = [chr(c) for c in range(33, 127)]
TOKENS = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Options of diffusers' UNet and VAE, and of transformers' text encoders, one or (SDXL) two."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]
    context: int = 77  # tokens of a caption

    def network(self) -> UNet2DConditionModel:
        return UNet2DConditionModel(**self.unet)

    def write(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Path:
        """Save the pipeline in diffusers' layout. device: where the random numbers are drawn."""
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                parts = {"unet": self.network(), "vae": AutoencoderKL(**self.vae), **self._encoders()}
        finally:
            torch.set_default_dtype(usual)
        kind: Callable[..., Any] = StableDiffusionPipeline
        options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        if len(self.text) == 2:
            kind, options = StableDiffusionXLPipeline, {"add_watermarker": False}
        kind(scheduler=DDIMScheduler(**NOISE), **parts, **options).save_pretrained(folder)
        return folder

    def _encoders(self) -> dict[str, Any]:
        tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[], model_max_length=self.context)
        ends = {"bos_token_id": len(TOKENS) - 2, "eos_token_id": len(TOKENS) - 1, "pad_token_id": len(TOKENS) - 1}
        found: dict[str, Any] = {}
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        for kind, options, end in zip(kinds, self.text, ("", "_2"), strict=False):
            config = CLIPTextConfig(max_position_embeddings=self.context, **ends, **options)
            found |= {f"text_encoder{end}": kind(config), f"tokenizer{end}": tokenizer}
        return found


VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
SD15 = Architecture(
    unet={"sample_size": 64, "cross_attention_dim": 768},  # the rest are diffusers' defaults
    vae=VAE,
    text=({"vocab_size": 49408, **CLIP_L},),
)
SDXL = Architecture(
    unet={
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae=VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
    text=({"vocab_size": 49408, **CLIP_L}, {"vocab_size": 49408, **CLIP_G}),
)
