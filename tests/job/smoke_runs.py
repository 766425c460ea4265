"""Whole runs of configs/smoke.yaml, and what is read from the folders they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from redif_ray.checkpoint import load_checkpoint, weights_sha256
from redif_ray.config import Config, load
from redif_ray.evaluation.summary import Summary
from redif_ray.interrupt import stop_requests
from redif_ray.job.distill import run_part
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student
from redif_ray.runs.jsonl import read_rows


def smoke(root: Path, name: str, *overrides: str) -> Config:
    return load("smoke", [f"run.root={root}", f"run.name={name}", "tracking.uri=off", *overrides])


def train(config: Config, *, until: int = 1000, resume: bool = False) -> Path:
    """The folder of a run that is left after round `until`, or its last, and evaluates nothing."""
    with stop_requests() as stop:
        return run_part(config, stop, until=until, resume=resume, console=Console())


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    Summary.model_validate(found)
    return found


def initial_sha256(config: Config) -> str:
    return weights_sha256(get_weights(make_student(load_model(config.teacher.model), config.student.lora)))


def last_checkpoint(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("round-*"))[-1]


def last_weights(folder: Path) -> str:
    """Checksum of the weights after the last round, whichever version is the best."""
    return str(load_checkpoint(last_checkpoint(folder))[1]["weights_sha256"])


def start(root: Path, name: str, *options: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own, which leads a process group, with a Ray of its own."""
    command = [
        sys.executable,
        "-m",
        "redif_ray.cli",
        "distill",
        "smoke",
        f"run.root={root}",
        f"run.name={name}",
        "tracking.uri=off",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def rounds(folder: Path) -> int:
    """Training rounds that a run's metrics hold."""
    return len(read_rows(folder / "metrics.jsonl")) - 1


def plain_weights(config: Config) -> str:
    """Checksum of the weights after a run's last round, without Ray; each round's ratios are 1 before its update."""
    loop = PlainLoop(config)
    rounding = 1e-5 if config.networks.precision == "float32" else 1e-4
    for round in range(loop.plan.rounds):
        metrics = loop.round(round)
        assert all(abs(v) < rounding for k, v in metrics.items() if "fresh_log_ratio" in k)
    return loop.checksum()
