"""LoRA files for tiny pipelines, written by diffusers, with weights that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_models import normal
from torch import Tensor

from redif_ray.export.adapters import FILE

TARGETS = {"sd": ["to_v", "to_out.0", "conv1"], "sdxl": ["to_v", "to_out.0", "conv1"], "sd3": ["to_v", "to_out.0"]}
ENCODERS = {"sd": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"], "sd3": ["text_encoder"]}


def adapted(module: Any, targets: list[str], seed: int) -> tuple[dict[str, Tensor], LoraConfig]:
    """Give a network adapters whose weights matter; return these by peft's keys, with their configuration."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets)
    module.add_adapter(config, adapter_name="style")
    layers = get_peft_model_state_dict(module, adapter_name="style")
    return {k: 0.5 * normal(*v.shape, seed=seed + i) for i, (k, v) in enumerate(layers.items())}, config


def write_lora(pipeline_folder: Path, name: str, folder: Path, seed: int = 7, encoders: bool = True) -> Path:
    """Write a LoRA file by diffusers' own `save_lora_weights`."""
    pipe: Any = DiffusionPipeline.from_pretrained(pipeline_folder)
    component = "transformer" if name == "sd3" else "unet"
    made: dict[str, Any] = {}
    parts = [(component, TARGETS[name])]
    parts += [(encoder, ["q_proj", "out_proj"]) for encoder in ENCODERS[name]] if encoders else []
    for i, (part, targets) in enumerate(parts):
        layers, config = adapted(getattr(pipe, part), targets, seed + 1000 * i)
        made |= {f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": config.to_dict()}
    type(pipe).save_lora_weights(folder, **made)
    return folder / FILE
