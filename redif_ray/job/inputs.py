"""The things that a run learns from and is measured by, as MLflow lists them beside the run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.data.targets import content_hash
from redif_ray.evaluation.judge_source import judge_files, needs_reference
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.models.registry import teacher_folder
from redif_ray.planning import factory
from redif_ray.types import told

if TYPE_CHECKING:  # MLflow takes seconds to import
    from redif_ray.tracking import Input

NETWORKS = ("unet", "transformer")  # folders
DIGITS = 16  # hexadecimal digits of a digest


def inputs(config: Config, conditions: Conditions) -> list[Input]:
    """Return the teacher, the conditions of its images, and the judge's reference images, if it has any."""
    from redif_ray.tracking import Input

    teacher, judge = config.teacher, config.evaluation.judge
    digests, folder = factory.digests(config), teacher_folder(teacher)
    weights = {str(path.relative_to(folder)): digests(path) for path in _weights(folder)}
    steps = {"steps": teacher.steps, "solver": teacher.solver, "guidance": teacher.guidance}
    first = told(conditions.training[0])
    kind = "noises" if first is None else "captions" if isinstance(first, str) else "classes"
    counts = {"training": len(conditions.training), "held out": len(conditions.held_out)}
    drawn = hashlib.sha256(conditions.to_json().encode()).hexdigest()[:DIGITS]
    found = [
        Input("teacher", "teacher", teacher.model, content_hash(weights)[:DIGITS], steps),
        Input(kind, "training", config.conditions.source or teacher.model, drawn, counts),
    ]
    if not needs_reference(judge):
        path = judge_files(judge)[1]
        count = {"images": len(ReferenceImages(path))}
        found.append(Input("reference images", "evaluation", str(path), digests(path)[:DIGITS], count))
    return found


def _weights(folder: Path) -> list[Path]:
    """Return the files of a teacher's network, or of all of its parts where its folder is laid out otherwise."""
    every = sorted(folder.rglob("*.safetensors"))
    return [path for path in every if path.parent.name in NETWORKS] or every
