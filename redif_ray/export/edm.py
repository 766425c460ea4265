"""EDM-preconditioned models: `EDMEulerScheduler` holds sigma_data and preconditions; sigma itself is the level."""

from __future__ import annotations

from diffusers import EDMEulerScheduler

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.recipe import told
from redif_ray.export.sampler import Sampler
from redif_ray.models.edm import EDM


def edm_sampler(student: EDM, schedule: Schedule) -> Sampler:
    sigmas, other = schedule.levels.sigma.tolist(), told(schedule)
    told_names, told_values, at = ("", "", "sigma") if other is None else (", said", f", torch.tensor({other})", "said")
    return Sampler(
        EDMEulerScheduler.from_config(student.scheduler.config),
        sigmas,
        levels=f"sigmas = torch.tensor({sigmas})",
        scale="sigmas[0]",
        loop=[
            f"for sigma, following{told_names} in zip(sigmas, sigmas[1:]{told_values}):",
            f"    scaled, t = scheduler.precondition_inputs(x, {at}), scheduler.precondition_noise({at})",
        ],
        told="t.expand({})",
        x0=f"scheduler.precondition_outputs(x, output, {at})",
        result="x",
    )  # fmt: skip
