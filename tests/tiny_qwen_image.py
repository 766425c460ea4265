"""A tiny Qwen-Image with random weights that matter, saved by diffusers in the real layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny_models import randomise
from tiny_pipelines import CHARACTERS, WIDTH, save
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>"]
SCHEDULER = {  # of Qwen/Qwen-Image
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
MEAN, STD = [-0.7571, -0.7089, -0.9113, 0.1075], [2.8184, 1.4541, 2.3275, 2.6558]  # of its first four channels


def qwen2_tokenizer(text: str) -> Qwen2Tokenizer:
    """Characters, and the words of `text` besides: the first 34 tokens of Qwen-Image's template are 34, as in Qwen's
    own vocabulary, since the pipeline drops so many.
    """
    words = [word.replace(" ", "Ġ") for word in re.findall(r" ?[A-Za-z]+", re.sub(r"<.*?>", "", text))]
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word))))
    pieces = dict.fromkeys([*CHARACTERS, "Ġ", "Ċ", *("".join(pair) for pair in merges)])
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=SPECIAL, model_max_length=131072)


def vision_encoder(kind: Any, config: Any, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """Return an encoder of text with one layer that reads images. text, vision: what the class alone has."""
    text = {"hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1} | text
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH} | vision
    with torch.random.fork_rng(devices=[]):
        model = kind(config(text_config=text, vision_config=eyes))
    randomise(model, 0.5)
    return model


def qwen2_vl(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Return the encoder for this vocabulary, with two layers that read text."""
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }
    eyes = {"fullatt_block_indexes": [0]}
    return vision_encoder(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, text, eyes)


def qwen_vae() -> AutoencoderKLQwenImage:
    """The VAE of Qwen-Image, which Krea 2 took over; its images have four times the latents' edge."""
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=MEAN,
            latents_std=STD,
        )
    randomise(model, 0.2)
    return model


def write_qwen_image(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a pipeline whose images have four times the edges of their latents, two of which are a token's edge."""
    with torch.random.fork_rng(devices=[]):
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
    randomise(transformer)
    tokenizer = qwen2_tokenizer(QwenImagePipeline(None, None, None, None, None).prompt_template_encode)
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=qwen_vae(),
        text_encoder=qwen2_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return save(pipeline, folder, dtype)
