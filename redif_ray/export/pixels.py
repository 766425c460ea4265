"""Recipes of pixel students: `sample.py` in the student's folder samples it with its network and a diffusers scheduler.

DDPM-like students have an `EulerDiscreteScheduler`. An EDM-preconditioned student keeps its `EDMEulerScheduler`, which
holds sigma_data and applies the preconditioning; its levels are sigma itself.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import EDMEulerScheduler

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.euler import euler_scheduler
from redif_ray.export.recipe import Recipe
from redif_ray.models.edm import EDM
from redif_ray.models.pixel import PixelModel

SAMPLER = Path(__file__).with_name("sample.py")
SHOWN = 4  # number of images that the card's code makes
NEEDS = "It needs no more than `pip install torch diffusers`."


def pixel_recipe(student: PixelModel, schedule: Schedule) -> Recipe:
    """Return the recipe of a pixel student. Raises ModelError for a schedule of another noise process."""
    if isinstance(student, EDM):
        scheduler = EDMEulerScheduler.from_config(student.scheduler.config)
        return Recipe(scheduler, schedule.levels.sigma.tolist(), _code(student), NEEDS, SAMPLER)
    scheduler = euler_scheduler(student, schedule)
    return Recipe(scheduler, scheduler.sigmas.tolist(), _code(student), NEEDS, SAMPLER)


def _code(student: PixelModel) -> str:
    classes = student.num_classes
    labels = "" if classes is None else f", torch.tensor({[i % classes for i in range(SHOWN)]})"
    return "\n".join(
        [
            "import torch",
            "from sample import Student  # sample.py lies beside this file",
            'student = Student(".", "cuda" if torch.cuda.is_available() else "cpu")  # "." is the folder of both files',
            f"noise = torch.randn({SHOWN}, *student.shape, generator=torch.Generator().manual_seed(0))",
            f"images = student(noise{labels})  # [{SHOWN}, C, H, W] in [0, 1]",
        ]
    )
