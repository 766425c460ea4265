"""Tiny text-to-image pipelines with random weights that matter, saved by diffusers in the real layout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tiny_models import randomise, write_dit, write_unet
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CHARACTERS = [chr(c) for c in range(33, 127)]
WIDTH, TOKENS = 16, 8  # of a text encoder's states, and the tokens of a caption
ALONE = r"""
import sys
sys.modules |= dict.fromkeys(["redif_ray", "peft", "accelerate", "ray", "mlflow"])  # None: cannot be imported
import os, re, warnings, torch
torch.set_num_threads(1)
warnings.simplefilter("error", FutureWarning)  # whoever samples it would read them
for folder in sys.argv[1:]:
    os.chdir(folder)
    code = re.search(r"```python\n(.*?)```", open("README.md").read(), re.S).group(1)
    exec(code, {})
    floats = {}
    exec(code.replace("generator=", 'output_type="pt", generator=').replace("image.save", "#"), floats)
    torch.save(floats["image"], "image.pt")
"""


def clip_tokenizer() -> CLIPTokenizer:
    """Characters alone, in CLIP's own format."""
    tokens = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=TOKENS)


def clip(seed: int, *, projection: bool = True, width: int = WIDTH) -> CLIPTextModel:
    end = 2 * len(CHARACTERS) + 1
    config = CLIPTextConfig(
        vocab_size=end + 1,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    randomise(model, 0.5)
    return model


def t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in CHARACTERS)]
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]):
        model = T5EncoderModel(config)
    randomise(model, 0.5)
    return T5Tokenizer(vocab=pieces, extra_ids=0), model


def vae(channels: int) -> AutoencoderKL:
    """Twice the latents' edge; latents are scaled, and for SD3 shifted."""
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            scaling_factor=0.7,
            shift_factor=0.1 if channels == 8 else None,
        )
    randomise(model, 0.2)
    return model


def unet(**options: Any) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        model = UNet2DConditionModel(
            **(
                {
                    "sample_size": 8,
                    "in_channels": 4,
                    "out_channels": 4,
                    "block_out_channels": (8, 16),
                    "norm_num_groups": 4,
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                    "layers_per_block": 1,
                    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                    "attention_head_dim": 4,
                    "dropout": 0.2,
                    "cross_attention_dim": WIDTH,
                }
                | options
            )
        )
    randomise(model, 0.2)
    return model


def vp(**options: Any) -> DDIMScheduler:
    """Stable Diffusion's noise process, and the levels and end that redif-ray calls uniform_trailing."""
    return DDIMScheduler(
        **(
            {
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "clip_sample": False,
                "set_alpha_to_one": False,
                "steps_offset": 1,
                "timestep_spacing": "trailing",
            }
            | options
        )
    )


def save(pipeline: Any, folder: Path, dtype: torch.dtype) -> Path:
    (pipeline if dtype == torch.float32 else pipeline.to(dtype)).save_pretrained(folder)
    return folder


def write_sd(folder: Path, *, dtype: torch.dtype = torch.float32, **scheduler: Any) -> Path:
    pipeline = StableDiffusionPipeline(
        vae=vae(4),
        text_encoder=clip(1, projection=False),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=vp(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return save(pipeline, folder, dtype)


def write_sdxl(
    folder: Path,
    *,
    zeros: bool = True,
    dtype: torch.dtype = torch.float32,
    width_2: int = WIDTH,
    network: dict[str, Any] | None = None,
    **scheduler: Any,
) -> Path:
    added: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "cross_attention_dim": WIDTH + width_2,
        "projection_class_embeddings_input_dim": 6 * 4 + width_2,
    }
    pipeline = StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=clip(1, projection=False),
        text_encoder_2=clip(2, width=width_2),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(**added | (network or {})),
        scheduler=vp(**scheduler),
        add_watermarker=False,
        force_zeros_for_empty_prompt=zeros,
    )
    return save(pipeline, folder, dtype)


def write_sd3(
    folder: Path,
    *,
    with_t5: bool = True,
    shift: float = 3.0,
    dtype: torch.dtype = torch.float32,
    widths: tuple[int, int] = (WIDTH, WIDTH),
) -> Path:
    """widths: of the two CLIPs, 2 WIDTH in all."""
    with torch.random.fork_rng(devices=[]):
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        )
    randomise(transformer, 0.2)
    tokenizer, encoder = t5() if with_t5 else (None, None)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae(8),
        text_encoder=clip(1, width=widths[0]),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(2, width=widths[1]),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )
    return save(pipeline, folder, dtype)


def put_in_index(folder: Path, **parts: list[str]) -> Path:
    """List these parts in the folder's index besides."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return folder


def link_out(folder: Path, name: str) -> Path:
    """Move what is at `name` out of the folder, which gets a link to it; where it is now."""
    outside = folder.parent / "outside" / name
    outside.parent.mkdir(parents=True, exist_ok=True)
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    return outside


def run_alone(folders: Sequence[Path]) -> None:
    """Run the first Python of each folder's card, where it lies, in a process that has torch, diffusers and
    transformers: it writes `sample.png`, and beside it goes `image.pt`, the image before it becomes 8 bits.
    """
    command = [sys.executable, "-c", ALONE, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


def write_edm(folder: Path, *, classes: int | None = 3, channels: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng(devices=[]):
        network = UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=8,
            dropout=0.2,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        )
    randomise(network)
    network.to(dtype).save_pretrained(folder / "unet")
    EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "EDMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "EDMEulerScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "dit": write_dit,
    "unet": write_unet,
    "edm": write_edm,
    "sd": write_sd,
    "sdxl": write_sdxl,
    "sd3": write_sd3,
}
