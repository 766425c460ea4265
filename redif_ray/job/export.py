"""Export of a run's student as a diffusers folder, by `redif export` and at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redif_ray.config import Config
from redif_ray.data.schedule_file import read_schedule
from redif_ray.export import export_student
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_teacher, teacher_folder
from redif_ray.models.student import make_student, set_weights
from redif_ray.planning import factory
from redif_ray.planning.paths import warn_of_another_sampler
from redif_ray.runs.deployed import checkpoint_named, deployed_weights
from redif_ray.runs.folder import stored_config


def export_checkpoint(run: Path, out: Path, checkpoint: str, schedule: Path | None = None) -> Path:
    """Write a checkpoint of a run as a diffusers folder and return that folder.

    run: run folder. out: folder to write. checkpoint: name of a folder below `checkpoints/`; see `checkpoint_named`.
    schedule: schedule.yaml of `redif search`; None: the run's own schedule.
    """
    config, checkpoint = stored_config(run), checkpoint_named(run, checkpoint)
    if schedule is not None:
        times, file = read_schedule(schedule, config.student.steps)
        warn_of_another_sampler(f"--schedule {schedule}", file, config)
        config = config.model_copy(update={"student": config.student.model_copy(update=times._asdict())})
    export_deployed(config, run, checkpoint, out, None)
    return out


def export_deployed(config: Config, run: Path, checkpoint: str, out: Path, summary: dict[str, Any] | None) -> None:
    """Export what a checkpoint deploys; in a process of its own, which takes the memory of one network with it."""
    weights, _ = deployed_weights(run, checkpoint)
    export_weights(load_teacher(config.teacher), config, weights, out, summary)


def export_weights(
    teacher: DiffusionModel,
    config: Config,
    weights: Mapping[str, torch.Tensor],
    out: Path,
    summary: dict[str, Any] | None,
) -> None:
    """Write deployed `weights` to `out`, a diffusers folder with the schedule and the teacher's licence.

    summary: results of the run for the model card; None: a card without results.
    """
    student = make_student(factory.start(config, teacher), config.student.lora, in_place=True)
    set_weights(student, weights)
    export_student(
        student,
        factory.student_schedule(student, config.student),
        out,
        name=config.run.name,
        guidance=config.student.guidance,
        teacher=teacher_folder(config.teacher),
        summary=summary,
        fine_tunes=config.teacher.lora if config.student.init is None else None,
    )
