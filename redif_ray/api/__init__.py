"""The Python API, which the command line calls too. `redif_ray` has these names at its top, and imports them late."""

from redif_ray.api.commands import (
    distill,
    evaluate_run,
    export_student,
    find_schedule,
    load_config,
    run_sweep,
)
from redif_ray.api.images import load_student, sample_images
from redif_ray.api.own_images import make_reference, train_judge, train_teacher
from redif_ray.api.results import DistilledRun, Evaluation, FoundSchedules, SweepResult
from redif_ray.api.table import Table
from redif_ray.config import Config, ConfigError
from redif_ray.errors import UserError
from redif_ray.interrupt import Interrupted
from redif_ray.runs.round_report import RoundReport

__all__ = [
    "Config",
    "ConfigError",
    "DistilledRun",
    "Evaluation",
    "FoundSchedules",
    "Interrupted",
    "RoundReport",
    "SweepResult",
    "Table",
    "UserError",
    "distill",
    "evaluate_run",
    "export_student",
    "find_schedule",
    "load_config",
    "load_student",
    "make_reference",
    "run_sweep",
    "sample_images",
    "train_judge",
    "train_teacher",
]
