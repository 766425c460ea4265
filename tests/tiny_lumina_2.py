"""A tiny Lumina-Image 2.0 with random weights that matter, saved by diffusers in the real layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from tiny_models import randomise
from tiny_pipelines import CHARACTERS, WIDTH, put_in_index, save
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    """Characters alone, in Gemma's own format."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *CHARACTERS]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], add_bos_token=True, model_max_length=8192
    )


def gemma2(vocabulary: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    with torch.random.fork_rng(devices=[]):
        model = Gemma2Model(config)
    randomise(model, 0.5)
    return model


def large_vae() -> AutoencoderKL:
    """A VAE whose images have 8 times the latents' edge, which Lumina2Pipeline takes for granted."""
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKL(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    randomise(model, 0.2)
    return model


def write_lumina_2(folder: Path, *, dtype: torch.dtype = torch.float32, **scheduler: Any) -> Path:
    """Write the layout of Lumina-Image 2.0. scheduler: options in which the scheduler differs."""
    with torch.random.fork_rng(devices=[]):
        transformer = Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 16, 16),
            cap_feat_dim=WIDTH,
        )
    randomise(transformer, 0.2)
    tokenizer = gemma_tokenizer()
    pipeline = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 6.0} | scheduler)),
        vae=large_vae(),
        text_encoder=gemma2(len(tokenizer)),
        tokenizer=tokenizer,
    )
    return put_in_index(save(pipeline, folder, dtype), tokenizer=["transformers", "GemmaTokenizerFast"])
