"""`redif sample`: images of a student or a teacher as one picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from redif_ray.config import Config, read_yaml, validate
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.errors import UserError
from redif_ray.evaluation.grids import write_grid
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model
from redif_ray.types import Condition

BATCH = 50


def sample(model: str, out: Path, *, count: int, seed: int, label: int | None, steps: int) -> None:
    """Write `count` images of `model` to the PNG `out`; a student uses the schedule it was trained for."""
    source, network, schedule, guidance = _load(model, steps)
    if label is not None and (network.num_classes is None or not 0 <= label < network.num_classes):
        raise UserError(
            f"--label {label}: {source} has "
            + ("no classes" if network.num_classes is None else f"classes 0 to {network.num_classes - 1}")
        )
    images = [
        draw(network, schedule, list(range(i, min(i + BATCH, count))), seed=seed, label=label, guidance=guidance)
        for i in range(0, count, BATCH)
    ]
    write_grid(out, torch.cat(images).numpy())


@torch.no_grad()
def draw(
    model: DiffusionModel, schedule: Schedule, groups: list[int], *, seed: int, label: int | None, guidance: float
) -> torch.Tensor:
    """Images [len(groups), C, H, W] in [0, 1], classes in turn unless `label` says which."""
    conditions: list[Condition] = [None] * len(groups)
    if model.num_classes is not None:
        conditions = [label if label is not None else g % model.num_classes for g in groups]
    encoded = model.encode(conditions)
    unit = noise.initial_noise(groups, model.latent_shape, seed=seed, stream=Stream.HELD_OUT)
    return model.decode(
        solvers.sample("euler", lambda x, level: model.predict(x, level, encoded, guidance=guidance), unit, schedule)
    )


def _load(source: str, steps: int) -> tuple[str, DiffusionModel, Schedule, float]:
    path = Path(source)
    if (path / "config.yaml").exists():
        validate(read_yaml(path / "config.yaml"), Config)
        if not (path / "student").exists():
            raise FileNotFoundError(f"{path} has no student yet; finish the run first (redif distill ... --resume)")
        path = path / "student"
        source = str(path)
    model = load_model(source)
    settings = path / "redif.json"
    if settings.exists():
        own = json.loads(settings.read_text())
        return source, model, schedules.explicit(model.process, own["timesteps"]), float(own["guidance"])
    return source, model, schedules.build(model.process, steps, "uniform_trailing"), 1.0
