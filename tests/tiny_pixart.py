"""A tiny PixArt with random weights that matter, in the layout and with the options of the published folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from tiny_models import randomise
from tiny_pipelines import put_in_index, save, t5, vae

OLD = {  # the published transformers bear the name and the options of an older class
    "_class_name": "Transformer2DModel",
    "double_self_attention": False,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
}


def write_pixart(folder: Path, *, alpha: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """alpha: PixArt-alpha for 1024 pixels, whose network reads the image's size; its pipeline knows that network by
    sample_size=128.
    """
    with torch.random.fork_rng(devices=[]):
        transformer = PixArtTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=24,
            sample_size=128 if alpha else 8,
            interpolation_scale=2,
            use_additional_conditions=None if alpha else False,
            caption_channels=32,
        )
    randomise(transformer, 0.2)
    tokenizer, encoder = t5()
    pipeline = (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(4),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    save(pipeline, folder, dtype)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OLD))
    return put_in_index(folder, transformer=["diffusers", "Transformer2DModel"])
