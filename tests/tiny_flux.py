"""Tiny pipelines of FLUX.1, with the options of its published schedulers and VAE and shrunk edges, and of Chroma.

Chroma has the scheduler options of FLUX.1-dev, since its pipeline shifts by the same rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tiny_models import randomise
from tiny_pipelines import WIDTH, clip, clip_tokenizer, save, t5

CHANNELS = 4  # of latents; a token has four times as many
NETWORK = {
    "in_channels": 4 * CHANNELS,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (2, 2, 4),
}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64}


def scheduler(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=1.15, **options)


def vae() -> AutoencoderKL:
    """Images have twice the latents' edge."""
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=CHANNELS,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    randomise(model, 0.2)
    return model


def write_kontext(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write FLUX.1 Kontext, whose parts are those of FLUX.1-dev."""
    return write_flux(folder, dtype=dtype, kind=FluxKontextPipeline)


def write_flux(folder: Path, *, dev: bool = True, dtype: torch.dtype = torch.float32, kind: Any = FluxPipeline) -> Path:
    """Write FLUX.1-dev, or else FLUX.1-schnell."""
    with torch.random.fork_rng(devices=[]):
        transformer = FluxTransformer2DModel(**NETWORK, pooled_projection_dim=WIDTH, guidance_embeds=dev)
    randomise(transformer, 0.2)
    tokenizer, encoder = t5()
    pipeline = kind(
        transformer=transformer,
        vae=vae(),
        text_encoder=clip(1, projection=False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        scheduler=scheduler(**(DYNAMIC if dev else {"shift": 1.0})),
    )
    return save(pipeline, folder, dtype)


def write_chroma(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng(devices=[]):
        transformer = ChromaTransformer2DModel(
            **NETWORK, approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=2
        )
    randomise(transformer, 0.2)
    tokenizer, encoder = t5()
    pipeline = ChromaPipeline(
        transformer=transformer, vae=vae(), text_encoder=encoder, tokenizer=tokenizer, scheduler=scheduler(**DYNAMIC)
    )
    return save(pipeline, folder, dtype)
