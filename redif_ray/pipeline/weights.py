"""Publishing weights under a key, and fetching them: version and checksum are verified by who receives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import torch
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.pipeline.weight_store import StaleWeightsError, Weights


def publish(store: Any, key: str, weights: Mapping[str, Tensor]) -> None:
    """Put `weights` into the store; from now on `key` can be fetched."""
    arrays: Weights = {name: w.detach().cpu().numpy() for name, w in weights.items()}
    ray.get(store.publish.remote(key, arrays, weights_sha256(arrays)))


def fetch(store: Any, key: str) -> tuple[dict[str, Tensor], str]:
    """Weights `key` as tensors of their own, verified, and their checksum. Raises StaleWeightsError."""
    (reference,), checksum = ray.get(store.entry.remote(key))
    arrays: Weights = ray.get(reference)
    if weights_sha256(arrays) != checksum:
        raise StaleWeightsError(f"weights {key} do not match the checksum {checksum[:12]} their learner published")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, checksum


def version(key: str) -> int:
    return int(key.rpartition("-")[2])
