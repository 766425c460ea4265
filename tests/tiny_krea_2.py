"""A tiny Krea 2 with random weights that matter, saved by diffusers and transformers in the real layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel, QwenImagePipeline
from tiny_models import randomise
from tiny_pipelines import WIDTH, save
from tiny_qwen_image import qwen2_tokenizer, qwen_vae, vision_encoder
from transformers import Qwen3VLConfig, Qwen3VLModel

LAYERS = (1, 2, 3)  # whose states the network takes
SCHEDULER = {  # as Krea2Pipeline documents it, for images of other sizes
    "base_image_seq_len": 4,
    "base_shift": 0.5,
    "max_image_seq_len": 64,
    "max_shift": 1.15,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}


def qwen3_vl(vocabulary: int) -> Qwen3VLModel:
    """Return the encoder, with three layers that read text."""
    text = {
        "vocab_size": vocabulary,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
    }
    return vision_encoder(Qwen3VLModel, Qwen3VLConfig, text, {"deepstack_visual_indexes": [0]})


def write_krea_2(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Write a pipeline whose images have four times the edges of their latents, two of which are a token's edge.

    options: of the pipeline, as is_distilled=True.
    """
    with torch.random.fork_rng(devices=[]):
        transformer = Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=len(LAYERS),
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=24,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        )
    randomise(transformer, 0.2)
    tokenizer = qwen2_tokenizer(QwenImagePipeline(None, None, None, None, None).prompt_template_encode)
    pipeline = Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=LAYERS,
        **options,
    )
    return save(pipeline, folder, dtype)
