"""Tasks for the agent on tiny models, whose teacher is the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import write_dit

from redif_ray.adaptive.episodes import Task
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.models.registry import load_model


def minus_mse(images: torch.Tensor, teacher: torch.Tensor, _: list[Any]) -> torch.Tensor:
    return -(images - teacher).square().flatten(1).mean(1)


@torch.no_grad()
def tiny_task(folder: Path, count: int = 12, **values: Any) -> Task:
    model = load_model(write_dit(folder))
    conditions = [i % 3 for i in range(count)]
    unit = noise.initial_noise(range(count), model.latent_shape, seed=5, stream=Stream.ADAPTIVE)
    schedule = schedules.build(model.process, 12, "uniform_trailing")
    predict = model.predictor(model.encode(conditions), 1.0)
    targets = model.decode(solvers.sample("euler", predict, unit, schedule)).numpy()
    task = Task(model, 1.0, minus_mse, 0.01, 999.0, 6, Stream.ADAPTIVE, conditions, targets, 5)
    return replace(task, **values)
