"""LoRA adapters of a student in the layout of diffusers and peft, for `pipe.load_lora_weights(folder)`.

The file's metadata carries rank and alpha: without it diffusers assumes that alpha is the rank and makes other images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from redif_ray.export.pipeline import WHOLE
from redif_ray.export.recipe import Recipe
from redif_ray.models.student import ADAPTER
from redif_ray.models.text import TextModel

FILE = "pytorch_lora_weights.safetensors"


def save_adapters(student: TextModel, folder: Path) -> None:
    """Write the adapters of `student` into `folder` as `FILE`."""
    network: Any = student.network
    config: LoraConfig = network.peft_config[ADAPTER]
    layers = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(network, adapter_name=ADAPTER).items()}
    prefix = student.component
    student.pipeline_kind.save_lora_weights(
        folder, **{f"{prefix}_lora_layers": layers, f"{prefix}_lora_adapter_metadata": config.to_dict()}
    )


def adapter_lines(student: TextModel, recipe: Recipe) -> str:
    """Return Python that loads adapters and scheduler into the teacher's pipeline; `recipe.code` continues it."""
    kind, scheduler = student.pipeline_kind.__name__, type(recipe.scheduler).__name__
    return "\n".join(
        [
            f"from diffusers import {kind}, {scheduler}",
            f"pipe = {kind}.from_pretrained(TEACHER, {WHOLE})",
            f'pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")',
            "pipe.load_lora_weights(folder)",
            "pipe.to(device)",
        ]
    )
