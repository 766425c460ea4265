"""LoRA adapters of a student, in two layouts.

`FILE` is for `pipe.load_lora_weights(folder)` of diffusers. Its metadata carries rank and alpha: without it diffusers
assumes that alpha is the rank and makes other images. `COMFYUI` is for programs that do not read this metadata: the
factor alpha / rank is multiplied into B, and the keys of a UNet are those of kohya's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from redif_ray.export.pipeline import WHOLE
from redif_ray.export.recipe import Recipe
from redif_ray.models.adapters import FILE as FILE
from redif_ray.models.student import ADAPTER
from redif_ray.models.text import TextModel

COMFYUI = "comfyui_lora.safetensors"


def loads_adapters(student: TextModel) -> bool:
    """Tell whether the pipeline can load adapters; some, as those of PixArt, cannot."""
    return hasattr(student.pipeline_kind, "load_lora_weights")


def save_adapters(student: TextModel, folder: Path) -> None:
    """Write the adapters of `student` into `folder` as `FILE` and as `COMFYUI`."""
    network: Any = student.network
    config: LoraConfig = network.peft_config[ADAPTER]
    layers = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(network, adapter_name=ADAPTER).items()}
    prefix = student.component
    student.pipeline_kind.save_lora_weights(
        folder, **{f"{prefix}_lora_layers": layers, f"{prefix}_lora_adapter_metadata": config.to_dict()}
    )
    save_file(_with_alpha_inside(layers, prefix, config.lora_alpha / config.r), folder / COMFYUI)


def _with_alpha_inside(layers: dict[str, Tensor], component: str, factor: float) -> dict[str, Tensor]:
    """Return adapters whose alpha is their rank. factor: alpha / rank of `layers`, with peft's keys."""
    made: dict[str, Tensor] = {}
    for key, value in layers.items():
        layer, _, matrix = key.rpartition(".lora_")
        value = value if matrix == "A.weight" else factor * value
        if component != "unet":
            made[f"{component}.{key}"] = value.contiguous()
            continue
        name = f"lora_unet_{layer.replace('.', '_')}"
        made[f"{name}.lora_{'down' if matrix == 'A.weight' else 'up'}.weight"] = value.contiguous()
        if matrix == "A.weight":
            made[f"{name}.alpha"] = torch.tensor(float(len(value)))
    return made


def adapter_lines(student: TextModel, recipe: Recipe, fine_tunes: Mapping[str, float]) -> str:
    """Return Python that loads adapters and scheduler into the teacher's pipeline; `recipe.code` continues it.

    fine_tunes: LoRA files that were merged into the teacher, with their weights; the lines load them too.
    """
    kind, scheduler = student.pipeline_kind.__name__, type(recipe.scheduler).__name__
    names = [f"fine_tune_{i}" for i in range(len(fine_tunes))]
    files = [
        f'pipe.load_lora_weights(".", weight_name="{Path(file).name}", adapter_name="{name}")  # your copy of it'
        for file, name in zip(fine_tunes, names, strict=True)
    ]
    weights = [*fine_tunes.values(), 1.0]
    together = [f"pipe.set_adapters({[*names, 'few_steps']}, {weights})"] if files else []
    own = 'pipe.load_lora_weights(folder, adapter_name="few_steps")' if files else "pipe.load_lora_weights(folder)"
    return "\n".join(
        [
            f"from diffusers import {kind}, {scheduler}",
            f"pipe = {kind}.from_pretrained(TEACHER, {WHOLE})",
            f'pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")',
            *files,
            own,
            *together,
            "pipe.to(device)",
        ]
    )
