"""Models of pixels: Python that samples the student with its network and a scheduler of diffusers, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redif_ray.export.recipe import Recipe
from redif_ray.models.pixel import PixelModel

SHOWN = 4  # images that the card's code makes
NEEDS = "It needs no more than `pip install torch diffusers`."


@dataclass(frozen=True, slots=True)
class Sampler:
    """scheduler: as it is saved; sigmas: the levels [N + 1] in its units. The rest are pieces of the card's Python."""

    scheduler: Any
    sigmas: list[float]
    levels: str  # a line that makes them
    scale: str  # of the first x, in units of unit noise
    loop: list[str]  # its head, and the line that makes `scaled` and `t` of x
    told: str  # t for {} images
    x0: str  # of `output`
    result: str  # the image, in [-1, 1]


def pixel_recipe(student: PixelModel, sampler: Sampler, guidance: float) -> Recipe:
    return Recipe(sampler.scheduler, sampler.sigmas, _code(student, sampler, guidance), NEEDS)


def _code(student: PixelModel, sampler: Sampler, guidance: float) -> str:
    """Python that samples the folder with torch and diffusers alone, at most 15 lines.

    Its update is Euler's without the difference sigma' - sigma, which in float32 loses three digits from sigma = 2e4.
    """
    kind, scheduler = type(student.network).__name__, type(sampler.scheduler).__name__
    labels, outputs = _network_lines(student, guidance, sampler.told)
    shape = ", ".join(map(str, (SHOWN, *student.latent_shape)))
    return "\n".join([
        "import torch",
        f"from diffusers import {kind}, {scheduler}",
        'folder = "."  # where this file lies',
        f'network = {kind}.from_pretrained(folder, subfolder="{student.component}", use_safetensors=True)'
        ".requires_grad_(False)",
        f'scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")',
        sampler.levels,
        *labels,
        f"x = {sampler.scale} * torch.randn({shape}, generator=torch.Generator().manual_seed(0))",
        *sampler.loop,
        *outputs,
        f"    x0 = {sampler.x0}",
        "    x = x0 + (x - x0) * following / sigma",
        f"images = ({sampler.result} / 2 + 0.5).clamp(0, 1)",
    ])


def _network_lines(student: PixelModel, guidance: float, told: str) -> tuple[list[str], list[str]]:
    """The lines that make the labels and those that make `output` from `scaled` and `t`."""
    channels = student.latent_shape[0]
    first = f"[:, :{channels}]" if student.config.out_channels not in (None, channels) else ""  # the rest: a variance
    one = f"scaled, {told.format(SHOWN)}"
    if student.num_classes is None:
        return [], [f"    output = network({one}).sample{first}"]
    classes = [i % student.num_classes for i in range(SHOWN)]
    if guidance == 1:
        one += ", class_labels=labels"
        return [f"labels = torch.tensor({classes})"], [f"    output = network({one}).sample{first}"]
    nothing = student.null_conditions(SHOWN)["class_labels"].tolist()
    both = f"torch.cat([scaled, scaled]), {told.format(2 * SHOWN)}, class_labels=labels"
    return [f"labels = torch.tensor({classes + nothing})  # the second half: no class"], [
        f"    cond, uncond = network({both}).sample{first}.chunk(2)",
        f"    output = uncond + {guidance} * (cond - uncond)",
    ]
