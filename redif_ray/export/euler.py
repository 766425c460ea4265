"""Schedulers of DDPM-like students: diffusers' `EulerDiscreteScheduler` with explicit timesteps.

In units of x / alpha its step is the transition with S = 0, and its sigma is our sigma / alpha.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import EulerDiscreteScheduler

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.recipe import timesteps
from redif_ray.models.protocol import DiffusionModel, ModelError

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def euler_scheduler(student: DiffusionModel, schedule: Schedule) -> Any:
    """Return an Euler scheduler with the teacher's betas and the timesteps of `schedule`.

    With spacing `trailing` it starts at sigma_T eps; the other spacings start at sqrt(sigma_T^2 + alpha_T^2) eps.
    Raises ModelError for a schedule of another noise process.
    """
    # The offset is the teacher's, since pipelines warn of any other; spacing `trailing` does not use it.
    config, end = student.scheduler.config, schedule.levels.sigma[-1]
    scheduler: Any = EulerDiscreteScheduler(
        **{key: config[key] for key in BETAS},
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        prediction_type=student.prediction_type,
        timestep_spacing="trailing",
        steps_offset=config.get("steps_offset", 0),
        final_sigmas_type="sigma_min" if end > 0 else "zero",
    )
    scheduler.set_timesteps(timesteps=timesteps(schedule))
    finite = schedule.levels.alpha > 0  # with rescaled betas our first sigma is infinite, and Euler's is 4096
    expected = (schedule.levels.sigma / schedule.levels.alpha)[finite].float()
    if not torch.allclose(scheduler.sigmas[finite], expected, rtol=1e-3):
        raise ModelError(
            f"schedule {schedule.name} has sigmas {expected.tolist()}, Euler's scheduler at the same timesteps "
            f"{scheduler.sigmas.tolist()}; expected a schedule of this model's own noise process"
        )
    return scheduler
