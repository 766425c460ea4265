"""Tiny encoders of images and captions with random weights that matter, saved by transformers in the real layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import randomise
from tiny_pipelines import CHARACTERS, TOKENS, clip_tokenizer
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

EMBEDDING = 12
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(make: Callable[[], Any], folder: Path, scale: float) -> Path:
    with torch.random.fork_rng(devices=[]):
        network = make()
    randomise(network, scale)
    with torch.no_grad():  # or all images look alike
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "class_embedding", "cls_token", "position_embedding.weight")):
                parameter.mul_(0.1)
    network.save_pretrained(folder)
    return folder


def write_dino(folder: Path) -> Path:
    """Write a DINOv2 for images of 16 pixels."""
    save(lambda: Dinov2Model(Dinov2Config(**TINY, image_size=16, patch_size=8)), folder, 0.4)
    BitImageProcessorPil(size={"shortest_edge": 20}, crop_size=16).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """For images of 16 pixels."""
    end = 2 * len(CHARACTERS) + 1
    tower = {**TINY, "intermediate_size": 16}
    config = CLIPConfig(
        projection_dim=EMBEDDING,
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        text_config={
            **tower,
            "vocab_size": end + 1,
            "max_position_embeddings": TOKENS,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
    )
    save(lambda: CLIPModel(config), folder, 0.4)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder
