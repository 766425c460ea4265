"""EDM-preconditioned models: `EDMEulerScheduler` holds sigma_data and preconditions; sigma itself is the level."""

from __future__ import annotations

from diffusers import EDMEulerScheduler

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.sampler import Sampler
from redif_ray.models.edm import EDM


def edm_sampler(student: EDM, schedule: Schedule) -> Sampler:
    sigmas = schedule.levels.sigma.tolist()
    return Sampler(
        EDMEulerScheduler.from_config(student.scheduler.config),
        sigmas,
        levels=f"sigmas = torch.tensor({sigmas})",
        scale="sigmas[0]",
        loop=[
            "for sigma, following in zip(sigmas, sigmas[1:]):",
            "    scaled, t = scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)",
        ],
        told="t.expand({})",
        x0="scheduler.precondition_outputs(x, output, sigma)",
        result="x",
    )  # fmt: skip
