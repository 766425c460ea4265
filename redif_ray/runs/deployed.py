"""The student that a checkpoint of a run deploys, named by a key so that workers read it from the run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redif_ray.checkpoint import StoredTensors, check_checkpoint
from redif_ray.runs.folder import RunError, latest_checkpoint

if TYPE_CHECKING:
    import torch

BEST = "best"  # checkpoint of the best student by validation reward
INITIAL = "initial-0"  # key of the untrained student's weights, which every worker can make
START = "checkpoint/"
DEPLOYED = ("deploy", "average/average", "student")  # prefixes of a checkpoint's tensors, the first that exists counts
log = logging.getLogger(__name__)


def checkpoint_key(name: str, version: int) -> str:
    """Return the key of the weights that the checkpoint called `name` deploys, which are those of `version`."""
    return f"{START}{name}-{version}"


def checkpoint_of(key: str) -> str | None:
    """Return the name of the checkpoint that a key stands for, or None for a key of the weight store."""
    return key.removeprefix(START).rpartition("-")[0] if key.startswith(START) else None


def checkpoint_named(run: Path, name: str) -> str:
    """Return `name`, a folder below the run's `checkpoints/`; in place of a `best` that is not there yet, the newest.

    Raises RunError that lists the checkpoints which are there.
    """
    folder = run / "checkpoints"
    there = [path.name for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    if name in there:
        return name
    newest = latest_checkpoint(folder)
    if name == BEST and newest is not None:
        log.warning("%s has no checkpoint %s yet; its newest one, %s, is taken", run, BEST, newest.name)
        return newest.name
    has = f"it has {', '.join(there)}" if there else "it has none yet; wait for the first (checkpoint.every)"
    raise RunError(f"{run} has no checkpoint {name!r}: {has}")


def deployed_weights(run: Path, checkpoint: str) -> tuple[Mapping[str, torch.Tensor], int]:
    """Return the deployed weights, each read when it is asked for, and the policy version of a checkpoint.

    run: run folder. checkpoint: name of a folder below `checkpoints/`. Raises CheckpointError.
    """
    state, meta = check_checkpoint(run / "checkpoints" / checkpoint)
    return _weights(state), int(meta.get("version", meta.get("round", 0)))


def _weights(state: Path) -> Mapping[str, Any]:
    found = (StoredTensors(state, prefix) for prefix in DEPLOYED)
    return next((weights for weights in found if weights), {})
