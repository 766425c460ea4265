"""Pipelines of real size: the published configurations, with weights files that are all holes and take no disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from tiny_pipelines import clip_tokenizer, t5
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
META = torch.device("meta")


def stable_diffusion_15(folder: Path) -> Path:
    """860 M parameters in the network, 64 x 64 x 4 latents."""
    with META:
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    diffusers_part(network, folder / "unet")
    diffusers_part(vae(), folder / "vae")
    transformers_part(_clip_l(), folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    PNDMScheduler(skip_prk_steps=True, **BETAS).save_pretrained(folder / "scheduler")
    return index(
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
    diffusers_part(network, folder / "unet")
    diffusers_part(vae(scaling_factor=0.13025), folder / "vae")
    transformers_part(_clip_l(), folder / "text_encoder")
    transformers_part(_clip_g(), folder / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        clip_tokenizer().save_pretrained(folder / name)
    EulerDiscreteScheduler(timestep_spacing="leading", **BETAS).save_pretrained(folder / "scheduler")
    return index(
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


def stable_diffusion_35_medium(folder: Path) -> Path:
    """2.2 G parameters in the network, 128 x 128 x 16 latents, three text encoders, of which T5 has 4.8 G."""
    with META:
        network = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    diffusers_part(network, folder / "transformer")
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    diffusers_part(vae(16, scaling_factor=1.5305, shift_factor=0.0609, **plain), folder / "vae")
    transformers_part(_clip_l(CLIPTextModelWithProjection), folder / "text_encoder")
    transformers_part(_clip_g(), folder / "text_encoder_2")
    transformers_part(_t5_xxl(), folder / "text_encoder_3")
    for name in ("tokenizer", "tokenizer_2"):
        clip_tokenizer().save_pretrained(folder / name)
    t5()[0].save_pretrained(folder / "tokenizer_3")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    clip = ["transformers", "CLIPTextModelWithProjection"]
    return index(
        folder,
        "StableDiffusion3Pipeline",
        transformer=["diffusers", "SD3Transformer2DModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=clip,
        text_encoder_2=clip,
        text_encoder_3=["transformers", "T5EncoderModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        tokenizer_3=["transformers", "T5Tokenizer"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )


def flux_kontext(folder: Path) -> Path:
    """FLUX.1-dev's parts; 11.9 G parameters in the network."""
    return flux_dev(folder, "FluxKontextPipeline")


def flux_dev(folder: Path, kind: str = "FluxPipeline") -> Path:
    """11.9 G parameters in the network, 128 x 128 x 16 latents; `flux_family.py` loads it."""
    with META:
        network = FluxTransformer2DModel(guidance_embeds=True)
    diffusers_part(network, folder / "transformer")
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    diffusers_part(vae(16, scaling_factor=0.3611, shift_factor=0.1159, **plain), folder / "vae")
    transformers_part(_clip_l(), folder / "text_encoder")
    transformers_part(_t5_xxl(), folder / "text_encoder_2")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    t5()[0].save_pretrained(folder / "tokenizer_2")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, max_shift=1.15).save_pretrained(
        folder / "scheduler"
    )
    return index(
        folder,
        kind,
        transformer=["diffusers", "FluxTransformer2DModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        text_encoder_2=["transformers", "T5EncoderModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "T5Tokenizer"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )


def edm_imagenet_64(folder: Path) -> Path:
    """296 M parameters, 64 x 64 pixels, 1,000 classes: the size of EDM's network for ImageNet-64 (ADM)."""
    with META:
        network = UNet2DModel(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            layers_per_block=3,
            block_out_channels=(192, 384, 576, 768),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=64,
            num_class_embeds=1000,
        )
    diffusers_part(network, folder / "unet")
    EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5).save_pretrained(folder / "scheduler")
    return index(folder, "EDMPipeline", unet=["diffusers", "UNet2DModel"], scheduler=["diffusers", "EDMEulerScheduler"])


def _clip_l(kind: Any = CLIPTextModel) -> Any:
    with META:
        return kind(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
                hidden_act="quick_gelu",
                vocab_size=49408,
                max_position_embeddings=77,
            )
        )


def _clip_g() -> CLIPTextModelWithProjection:
    with META:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
                hidden_act="gelu",
                vocab_size=49408,
                max_position_embeddings=77,
            )
        )


def _t5_xxl() -> T5EncoderModel:
    with META:
        return T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )


def vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    with META:
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=channels,
            **config,
        )


def diffusers_part(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.save_config(folder)
    _holes(model, folder / "diffusion_pytorch_model.safetensors")


def transformers_part(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _holes(model, folder / "model.safetensors")


def _holes(model: Any, path: Path) -> None:
    """A safetensors file of float16 zeros for a model's weights, which the file system does not store."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    seen: set[int] = set()  # of weights with two names, the files have one
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def index(folder: Path, kind: str, **parts: Any) -> Path:
    content = {"_class_name": kind, "_diffusers_version": "0.38.0"} | parts
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


def dit_xl_2(folder: Path) -> Path:
    """675 M parameters in the network, 32 x 32 x 4 latents, 1,000 classes."""
    with META:
        network = DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            num_layers=28,
            in_channels=4,
            out_channels=8,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
            norm_elementwise_affine=False,
        )
    diffusers_part(network, folder / "transformer")
    diffusers_part(vae(), folder / "vae")
    DDIMScheduler(clip_sample=False, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    return index(
        folder,
        "DiTPipeline",
        transformer=["diffusers", "DiTTransformer2DModel"],
        vae=["diffusers", "AutoencoderKL"],
        scheduler=["diffusers", "DDIMScheduler"],
    )
