"""Text-to-image models: diffusers' own pipeline samples the student, told its levels and its guidance.

Variance-preserving ones take `timesteps=` with `EulerDiscreteScheduler`, flows `sigmas=` with
`FlowMatchEulerDiscreteScheduler`. Where the teacher's scheduler stops at alphas_cumprod[0] instead of 1, the pipeline
decodes x / alpha, a factor of 1.0004 for Stable Diffusion's betas.
"""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler

from redif_ray.diffusion.levels import FlowMatching
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.euler import euler_scheduler
from redif_ray.export.recipe import Recipe, timesteps
from redif_ray.models.protocol import ModelError
from redif_ray.models.text import TextModel

CAPTION = "a photo of a red fox asleep in fresh snow"
NEEDS = 'It needs no more than `pip install torch "diffusers>=0.40" transformers`.'  # that which first knows `dtype`
# Without a dtype each part has that of its own files or config.json, and parts of two dtypes do not fit together.
WHOLE = "dtype=torch.float32, use_safetensors=True"


def pipeline_recipe(student: TextModel, schedule: Schedule, guidance: float) -> Recipe:
    """Raises ModelError for what a pipeline of diffusers does not do."""
    if guidance < 1:
        raise ModelError(f"student.guidance={guidance:g}: diffusers' pipelines guide above 1 only; expected 1 or more")
    if student.clip is not None:
        raise ModelError(
            "the teacher's scheduler has clip_sample=true, and diffusers' Euler scheduler does not clip; "
            "expected clip_sample=false, as latents want it"
        )
    if schedule.network_timesteps is not None:
        raise ModelError(
            "student.network_timesteps: no pipeline of diffusers calls its network with other timesteps "
            "than its levels'; "
            "search without search.network_timestep_trials and search.descent.network_timesteps"
        )
    kind = student.pipeline_kind.__name__
    if isinstance(student.process, FlowMatching):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(student.process.scale), shift=1.0)
        sigmas = schedule.levels.sigma.tolist()
        levels = f"sigmas={sigmas[:-1]}"
    else:
        scheduler = euler_scheduler(student, schedule)
        sigmas = scheduler.sigmas.tolist()
        levels = f"timesteps={timesteps(schedule)}"
    return Recipe(scheduler, sigmas, _code(kind, levels, guidance), NEEDS)


def _code(kind: str, levels: str, guidance: float) -> str:
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {kind}",
            'folder = "."  # where this file lies',
            f"pipe = {kind}.from_pretrained(folder, {WHOLE})",
            '# on a GPU: pipe.to("cuda", torch.bfloat16)',
            "image = pipe(",
            f'    "{CAPTION}",',
            f"    {levels},",
            f"    guidance_scale={guidance:g},",
            "    generator=torch.Generator().manual_seed(0),",
            ").images[0]",
            'image.save("sample.png")',
        ]
    )
