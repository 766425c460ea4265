"""The student that a checkpoint of a run deploys."""

from __future__ import annotations

from pathlib import Path

import torch

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.config import Config
from redif_ray.runs.folder import stored_config


def deployed(run: Path, checkpoint: str) -> tuple[Config, dict[str, torch.Tensor], int]:
    """Return the configuration, the deployed weights and the policy version of a checkpoint.

    run: run folder. checkpoint: name of a folder below `checkpoints/`.
    Raises RunError and CheckpointError.
    """
    config = stored_config(run)
    tensors, meta = load_checkpoint(run / "checkpoints" / checkpoint)
    weights = unpack("deploy", tensors) or unpack("average/average", tensors) or unpack("student", tensors)
    return config, weights, int(meta.get("version", meta.get("round", 0)))
