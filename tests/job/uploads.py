"""Runs to upload, without training: a configuration, checkpoints that differ, and what comes back of them."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from redif_ray.checkpoint import load_checkpoint, save_checkpoint
from redif_ray.config import Config, load
from redif_ray.runs.backup_store import Remote

CONSOLE = Console(quiet=True)


def configured(root: Path, *overrides: str) -> Config:
    found: Config = load(None, [f"run.root={root}", "run.name=first", "tracking.uri=off", *overrides])
    return found


def checkpoint(folder: Path, round: int, name: str | None = None, size: int = 1000) -> None:
    """One that differs from those of other rounds."""
    tensors = {"weights": torch.full((size // 4,), float(round))}
    save_checkpoint(folder / "checkpoints" / (name or f"round-{round:06d}"), tensors, {"round": round})


def value(folder: Path, name: str) -> float:
    return float(load_checkpoint(folder / "checkpoints" / name)[0]["weights"][0])


def rounds_of(remote: Remote) -> list[int]:
    """The rounds of the complete copies, the newest first."""
    return [copy.round for copy in remote.copies()]
