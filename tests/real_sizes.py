"""Pipelines of real size: the published configurations, with weights files that are all holes and take no disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tiny_pipelines import clip_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
META = torch.device("meta")


def stable_diffusion_15(folder: Path) -> Path:
    """860 M parameters in the network, 64 x 64 x 4 latents."""
    with META:
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    _diffusers(network, folder / "unet")
    _diffusers(_vae(), folder / "vae")
    _transformers(_clip_l(), folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    PNDMScheduler(skip_prk_steps=True, **BETAS).save_pretrained(folder / "scheduler")
    return _index(
        folder,
        "StableDiffusionPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        scheduler=["diffusers", "PNDMScheduler"],
    )


def stable_diffusion_xl(folder: Path) -> Path:
    """2.6 G parameters in the network, 128 x 128 x 4 latents, two text encoders."""
    with META:
        network = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    _diffusers(network, folder / "unet")
    _diffusers(_vae(scaling_factor=0.13025), folder / "vae")
    _transformers(_clip_l(), folder / "text_encoder")
    _transformers(_clip_big_g(), folder / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        clip_tokenizer().save_pretrained(folder / name)
    EulerDiscreteScheduler(timestep_spacing="leading", **BETAS).save_pretrained(folder / "scheduler")
    return _index(
        folder,
        "StableDiffusionXLPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        scheduler=["diffusers", "EulerDiscreteScheduler"],
        force_zeros_for_empty_prompt=True,
    )


def stable_diffusion_35(folder: Path) -> Path:
    """2.2 G parameters in the network, 128 x 128 x 16 latents, two text encoders; T5, which may be absent, is."""
    with META:
        network = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        clip_l = CLIPTextModelWithProjection(_clip_l().config)
    _diffusers(network, folder / "transformer")
    _diffusers(
        _vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False), folder / "vae"
    )
    _transformers(clip_l, folder / "text_encoder")
    _transformers(_clip_big_g(), folder / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        clip_tokenizer().save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    return _index(
        folder,
        "StableDiffusion3Pipeline",
        transformer=["diffusers", "SD3Transformer2DModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModelWithProjection"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        text_encoder_3=[None, None],
        tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        tokenizer_3=[None, None],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )


def _clip_l() -> CLIPTextModel:
    with META:
        return CLIPTextModel(_clip(768, 12, "quick_gelu"))


def _clip_big_g() -> CLIPTextModelWithProjection:
    with META:
        return CLIPTextModelWithProjection(_clip(1280, 32, "gelu"))


def _clip(width: int, layers: int, activation: str) -> CLIPTextConfig:
    """The configuration of a text encoder of CLIP, whose heads are 64 wide."""
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
        vocab_size=49408,
        max_position_embeddings=77,
    )


def _vae(**config: Any) -> AutoencoderKL:
    with META:
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            **{"latent_channels": 4} | config,
        )


def _diffusers(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.save_config(folder)
    _holes(model, folder / "diffusion_pytorch_model.safetensors")


def _transformers(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _holes(model, folder / "model.safetensors")


def _holes(model: Any, path: Path) -> None:
    """A safetensors file of float16 zeros for a model's weights, which the file system does not store."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in model.state_dict().items():
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _index(folder: Path, kind: str, **parts: Any) -> Path:
    index = {"_class_name": kind, "_diffusers_version": "0.38.0"} | parts
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
