"""A tiny SANA with random weights that matter, saved by diffusers in the real layout and with the real options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from tiny_models import randomise
from tiny_pipelines import CHARACTERS, WIDTH, put_in_index, save
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer


def gemma() -> tuple[GemmaTokenizer, Gemma2Model]:
    """Characters alone; the states are WIDTH wide."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *CHARACTERS]
    config = Gemma2Config(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    with torch.random.fork_rng(devices=[]):
        model = Gemma2Model(config)
    randomise(model, 0.5)
    tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], add_bos_token=True)
    return tokenizer, model


def dc_vae(channels: int) -> AutoencoderDC:
    """32 times the latents' edge, as in SANA's own."""
    widths, kinds, scales = (
        (8, 8, 8, 8, 16, 16),
        ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        ((),) * 3 + ((5,),) * 3,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderDC(
            latent_channels=channels,
            attention_head_dim=8,
            encoder_block_types=kinds,
            decoder_block_types=kinds,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=(1,) * 6,
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        )
    randomise(model, 0.2)
    return model


def write_sana(folder: Path, *, dtype: torch.dtype = torch.float32, **network: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        transformer = SanaTransformer2DModel(
            **(
                {
                    "in_channels": 8,
                    "out_channels": 8,
                    "num_attention_heads": 2,
                    "attention_head_dim": 8,
                    "num_layers": 2,
                    "num_cross_attention_heads": 2,
                    "cross_attention_head_dim": 8,
                    "cross_attention_dim": 16,
                    "caption_channels": WIDTH,
                    "sample_size": 2,
                }
                | network
            )
        )
    randomise(transformer, 0.2)
    tokenizer, encoder = gemma()
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=dc_vae(8),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    save(pipeline, folder, dtype)
    return put_in_index(folder, tokenizer=["transformers", "GemmaTokenizerFast"])  # the published name
