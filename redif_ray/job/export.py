"""What is done with a run afterwards: export a checkpoint, measure its arms again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.cluster.connect import connect
from redif_ray.config import Config, ConfigError, assign, parse_override, validate
from redif_ray.data.schedule_file import read_times
from redif_ray.export import export_student
from redif_ray.interrupt import stop_requests
from redif_ray.job.evaluate import measure, result_table
from redif_ray.job.session import session
from redif_ray.learner.compute import Accounts
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_teacher, model_folder
from redif_ray.models.student import make_student, set_weights
from redif_ray.planning import factory
from redif_ray.runs import timeline
from redif_ray.runs.folder import RunFolder, stored_config
from redif_ray.workers.runtime_env import handed_over

MAY_CHANGE = (
    "evaluation.", "ray.", "rollout.workers", "reward.workers", "rollout.least", "reward.least", "rollout.resources",
    "reward.resources", "rollout.labels", "reward.labels",
)  # fmt: skip
NO_LEARNER = {"workers": 1, "shard": False, "cpus": 0, "gpus": 0, "resources": {}, "labels": {}}


def evaluate(run: Path, overrides: list[str], *, checkpoint: str, console: Console) -> Path:
    """`redif evaluate`: the arms of a run once more; writes evaluation-<held_out>.json beside its summary."""
    run = run.resolve()  # workers have working directories of their own
    config, weights, version = _load(run, checkpoint)
    config = evaluated(config, overrides)
    handed_over(config.reward)  # raises before Ray starts
    with stop_requests("nothing was written; run the command again") as stop, RunFolder.reopen(run) as folder:
        conditions = folder.conditions() or factory.conditions(config, load_teacher(config.teacher))
        folder.keep_conditions(conditions)
        with connect(config), session(config, conditions, folder, stop) as opened:
            opened.ready()
            opened.growth.start()
            measured = measure(opened, weights, version, Accounts(config))
        name = f"evaluation-{config.evaluation.held_out}.json"
        found = {**measured.fields, "notes": measured.notes}
        folder.write(name, json.dumps(found, indent=1) + "\n")
        timeline.draw(folder)
    console.print(result_table(found))
    return run / name


def evaluated(config: Config, overrides: list[str]) -> Config:
    """A run's configuration, for its evaluation: nothing asks for a learner's room. Raises ConfigError."""
    changed = [o for o in overrides if not o.startswith(MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{changed[0]}: an evaluation may change evaluation.*, ray.*, numbers of workers, their resources and "
            "labels; expected one of these"
        )
    tree = config.model_dump()
    for text in overrides:
        assign(tree, *parse_override(text))
    tree["tracking"]["uri"] = "off"
    tree["learner"] |= NO_LEARNER
    found: Config = validate(tree)
    return found


def export_checkpoint(run: Path, out: Path, checkpoint: str, schedule: Path | None = None) -> Path:
    """`redif export`: a checkpoint of a run as a diffusers folder. schedule: a file of `redif search`."""
    config, weights, _ = _load(run, checkpoint)
    if schedule is not None:
        found = read_times(schedule, config.student.steps)
        config = config.model_copy(update={"student": config.student.model_copy(update=found._asdict())})
    export_weights(load_teacher(config.teacher), config, weights, out, None)
    return out


def _load(run: Path, checkpoint: str) -> tuple[Config, dict[str, torch.Tensor], int]:
    """Configuration, deployed weights and policy version of a checkpoint of a run."""
    config = stored_config(run)
    tensors, meta = load_checkpoint(run / "checkpoints" / checkpoint)
    weights = unpack("deploy", tensors) or unpack("average/average", tensors) or unpack("student", tensors)
    return config, weights, int(meta.get("version", meta.get("round", 0)))


def export_weights(
    teacher: DiffusionModel, config: Config, weights: dict[str, torch.Tensor], out: Path, summary: dict[str, Any] | None
) -> None:
    """Deployed `weights` as a diffusers folder that carries the schedule and the teacher's licence."""
    student = make_student(teacher, config.student.lora)
    set_weights(student, weights)
    export_student(
        student,
        factory.student_schedule(teacher, config.student),
        out,
        name=config.run.name,
        guidance=config.student.guidance,
        teacher=model_folder(config.teacher.model),
        summary=summary,
    )
