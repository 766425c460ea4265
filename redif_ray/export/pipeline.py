"""Recipes of text-to-image students: diffusers' own pipeline samples the student with its levels and guidance.

Variance-preserving students use `timesteps=` with `EulerDiscreteScheduler`, flows use `sigmas=` with
`FlowMatchEulerDiscreteScheduler`. Where the teacher's scheduler stops at alphas_cumprod[0] instead of 1, the pipeline
decodes x / alpha, a factor of 1.0004 for Stable Diffusion's betas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from redif_ray.diffusion.levels import FlowMatching
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.euler import euler_scheduler
from redif_ray.export.recipe import Recipe, timesteps
from redif_ray.models.device import sampling_dtype
from redif_ray.models.protocol import ModelError
from redif_ray.models.text import TextModel

CAPTION = "a photo of a red fox asleep in fresh snow"
# diffusers 0.40 is the first with `dtype`.
NEEDS = 'It needs no more than `pip install torch "diffusers>=0.40" transformers{more}`.'
# Without a dtype each part gets the dtype of its own files or config.json, and parts of two dtypes do not combine.
WHOLE = "dtype=dtype, use_safetensors=True"


def pipeline_recipe(student: TextModel, schedule: Schedule, guidance: float) -> Recipe:
    """Return the recipe of a text-to-image student.

    Raises ModelError for guidance below 1, clipping and network timesteps, which pipelines of diffusers do not support.
    """
    if guidance < 1:
        raise ModelError(f"student.guidance={guidance:g}: diffusers' pipelines guide above 1 only; expected at least 1")
    if student.clip is not None:
        raise ModelError(
            "the teacher's scheduler has clip_sample=true, and diffusers' Euler scheduler does not clip; "
            "expected clip_sample=false, since latents exceed [-1, 1]"
        )
    if schedule.network_timesteps is not None:
        raise ModelError(
            "student.network_timesteps: a pipeline of diffusers calls its network with the timesteps of its levels "
            "only; search without search.network_timestep_trials and search.descent.network_timesteps"
        )
    kind = student.pipeline_kind.__name__
    if isinstance(student.process, FlowMatching):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(student.process.scale), shift=1.0)
        sigmas = schedule.levels.sigma.tolist()
        levels = {"sigmas": sigmas[:-1]}
    else:
        scheduler = euler_scheduler(student, schedule)
        sigmas = scheduler.sigmas.tolist()
        levels = {"timesteps": timesteps(schedule)}
    whole = sampling_dtype(None, student.frozen.folder, "cuda") == torch.float32
    gpu_dtype = "float32" if whole else "bfloat16"  # which holds what overflows in a VAE's float16
    arguments = levels, student.pipeline_options, student.pipeline_guidance(guidance)
    picture = student.image_shape[1:] if student.takes_pictures else None
    needs = NEEDS.format(more="".join(f" {name}" for name in student.also_needs))
    call = {name: value for each in arguments for name, value in each.items()}
    return Recipe(scheduler, sigmas, _code(kind, arguments, gpu_dtype, picture), needs, gpu_dtype=gpu_dtype, call=call)


def _code(
    kind: str, arguments: Iterable[Mapping[str, Any]], gpu_dtype: str, picture: tuple[int, ...] | None = None
) -> str:
    """Return the card's Python. arguments: those of the pipeline's call, a line for each mapping.

    picture: (height, width) of the picture that the model changes, if it takes one.
    """
    fitted = f'ImageOps.fit(Image.open("picture.png").convert("RGB"), {picture[::-1]})' if picture else None
    lines = [", ".join(f"{name}={_shown(value)}" for name, value in each.items()) for each in arguments if each]
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {kind}",
            *(["from PIL import Image, ImageOps"] if fitted else []),
            'folder = "."  # the folder of this file',
            f'device, dtype = ("cuda", torch.{gpu_dtype}) if torch.cuda.is_available() else ("cpu", torch.float32)',
            f"pipe = {kind}.from_pretrained(folder, {WHOLE}).to(device)",
            "image = pipe(",
            f'    prompt="{CAPTION}",',  # the first argument of some pipelines is an image
            *([f"    image={fitted},  # to change"] if fitted else []),
            *(f"    {line}," for line in lines),
            "    generator=torch.Generator().manual_seed(0),",
            ").images[0]",
            'image.save("sample.png")',
        ]
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, str) else repr(value)
