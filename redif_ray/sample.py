"""The command `redif sample`: images of a student or a teacher as one picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from redif_ray.config import Config, read_yaml, validate
from redif_ray.data.schedule_file import read_times
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.levels import VarianceExploding
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.errors import UserError
from redif_ray.evaluation.grids import write_grid
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model
from redif_ray.types import Condition

BATCH = 50  # images at once, fewer for a large model
BATCH_NUMBERS = 50_000  # limit of the numbers in the latents of a batch


def sample(
    model: str,
    out: Path,
    *,
    count: int,
    seed: int,
    label: int | None = None,
    caption: str | None = None,
    steps: int = 20,
    guidance: float | None = None,
    schedule: Path | None = None,
    family: str | None = None,
) -> None:
    """Write `count` images of `model` to the PNG `out`; a student uses the schedule and guidance it was trained for.

    label, caption: the condition of all images; None: the classes in turn, or no condition.
    steps: number of steps for a model without a schedule of its own. guidance: classifier-free guidance; None: the
        guidance of the student, or 1.
    schedule: a file of `redif search`, in which the schedule of as many steps as the model's is used; None: the
        model's own schedule.
    family: the user's own code that loads the model, as `teacher.family`; None: the family of the run, if `model` is a
        run. Raises UserError for a condition or guidance that the model does not take.
    """
    source, network, levels, own = _load(model, steps, family)
    if schedule is not None:
        times = read_times(schedule, levels.steps)
        levels = schedules.explicit(network.process, times.levels, network_timesteps=times.network_timesteps)
    conditions = _conditions(network, source, count, label, caption)
    guidance = own if guidance is None else guidance
    if guidance != 1:
        network.check_guidance()
    size = max(1, min(BATCH, BATCH_NUMBERS // math.prod(network.latent_shape)))
    images = [
        draw(network, levels, list(range(i, min(i + size, count))), conditions[i : i + size], seed, guidance)
        for i in range(0, count, size)
    ]
    write_grid(out, torch.cat(images).numpy())


@torch.no_grad()
def draw(
    model: DiffusionModel,
    schedule: Schedule,
    groups: list[int],
    conditions: list[Condition],
    seed: int,
    guidance: float,
) -> torch.Tensor:
    """Return images [B, C, H, W] in [0, 1] from the held-out noises of the groups, with a condition for each."""
    encoded = model.encode(conditions)
    unit = noise.initial_noise(groups, model.latent_shape, seed=seed, stream=Stream.HELD_OUT)
    return model.decode(solvers.sample("euler", model.predictor(encoded, guidance), unit, schedule))


def _conditions(
    model: DiffusionModel, source: str, count: int, label: int | None, caption: str | None
) -> list[Condition]:
    classes = model.num_classes
    if label is not None and (classes is None or not 0 <= label < classes):
        has = "no classes" if classes is None else f"classes 0 to {classes - 1}"
        raise UserError(f"--label {label}: {source} has {has}")
    if caption is not None and not model.takes_captions:
        raise UserError(f"--caption {caption!r}: {source} takes no captions; leave --caption out, or use --label")
    if classes is None:
        return [caption] * count
    return [label if label is not None else i % classes for i in range(count)]


def _load(source: str, steps: int, family: str | None) -> tuple[str, DiffusionModel, Schedule, float]:
    path = Path(source)
    if (path / "config.yaml").exists():
        family = family or validate(read_yaml(path / "config.yaml"), Config).teacher.family
        if not (path / "student").exists():
            raise FileNotFoundError(f"{path} has no student yet; finish the run first (redif distill ... --resume)")
        path = path / "student"
        source = str(path)
    model = load_model(source, family=family)
    settings = path / "redif.json"
    if settings.exists():
        own = json.loads(settings.read_text())
        schedule = schedules.explicit(model.process, own["timesteps"], network_timesteps=own.get("network_timesteps"))
        return source, model, schedule, float(own["guidance"])
    name = "karras" if isinstance(model.process, VarianceExploding) else "uniform_trailing"
    return source, model, schedules.build(model.process, steps, name), 1.0
