"""Tiny real diffusers folders with random weights that matter: no zero-initialised output hides a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiTTransformer2DModel, UNet2DModel
from torch import Tensor
from torch.nn import Module

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(noise.normal(torch.Size(shape).numel(), Stream.TRAIN, seed=seed)).reshape(shape)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def randomise(network: Module, scale: float = 0.15) -> None:
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(scale * normal(*p.shape, seed=1000 + i))


def scheduler(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**({"clip_sample": False, "prediction_type": "epsilon"} | options))


def write_dit(
    folder: Path, *, classes: int = 3, out_channels: int = 1, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    with torch.random.fork_rng(devices=[]):
        network = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            in_channels=1,
            out_channels=out_channels,
            sample_size=8,
            patch_size=4,
            num_embeds_ada_norm=classes,
            norm_elementwise_affine=False,
        )
    randomise(network)
    network.to(dtype).save_pretrained(folder / "transformer")
    scheduler(**({"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"} | options)).save_pretrained(
        folder / "scheduler"
    )
    index = {
        "_class_name": "DiTPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": [None, None],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "id2label": {str(i): f"c{i}" for i in range(classes)},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_unet(
    folder: Path,
    *,
    classes: int | None = None,
    out_channels: int = 2,
    network: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    with torch.random.fork_rng(devices=[]):
        unet = UNet2DModel(
            **(
                {
                    "sample_size": 8,
                    "in_channels": 2,
                    "out_channels": out_channels,
                    "block_out_channels": (8, 16),
                    "norm_num_groups": 4,
                    "layers_per_block": 1,
                    "attention_head_dim": 8,
                    "dropout": 0.2,
                    "down_block_types": ("DownBlock2D", "DownBlock2D"),
                    "up_block_types": ("UpBlock2D", "UpBlock2D"),
                    "num_class_embeds": classes,
                }
                | (network or {})
            )
        )
    randomise(unet)
    DDPMPipeline(unet.to(dtype), scheduler(**options)).save_pretrained(folder)
    return folder
