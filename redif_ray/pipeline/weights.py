"""The published weights, owned by an actor that outlives the learner's processes.

Weights travel as numpy arrays (zero-copy reads) under keys `<kind>-<version>`: `policy-7` is what round 7's rollouts
use, `deploy-7` what version 7 would deploy (its average, where the learner keeps one).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch

from redif_ray.checkpoint import weights_sha256

Weights = dict[str, np.ndarray]


class StaleWeightsError(RuntimeError):
    """Weights that are absent, or are not what their publisher sent."""


class WeightStore:
    def __init__(self, keep: int = 4) -> None:
        self.keep = keep
        self.entries: dict[str, tuple[Any, str]] = {}

    def publish(self, key: str, weights: Weights, checksum: str) -> None:
        """Keep `weights` under `key`; the oldest of a kind go. They are put again, so that this actor owns them."""
        self.entries[key] = (ray.put(weights), checksum)
        kind = key.rpartition("-")[0]
        versions = sorted(
            (k for k in self.entries if k.rpartition("-")[0] == kind), key=lambda k: int(k.rpartition("-")[2])
        )
        for old in versions[: -self.keep]:
            del self.entries[old]

    def entry(self, key: str) -> tuple[list[Any], str]:
        """([reference], checksum): the reference travels inside a list, so the arrays are not copied through here."""
        if key not in self.entries:
            raise StaleWeightsError(f"weights {key} were never published or are gone; here are {sorted(self.entries)}")
        reference, checksum = self.entries[key]
        return [reference], checksum


def fetch(store: Any, key: str) -> tuple[dict[str, torch.Tensor], str]:
    """Weights `key` as tensors of their own, verified, and their checksum. Raises StaleWeightsError."""
    (reference,), checksum = ray.get(store.entry.remote(key))
    arrays: Weights = ray.get(reference)
    if weights_sha256(arrays) != checksum:
        raise StaleWeightsError(f"weights {key} do not match the checksum {checksum[:12]} their learner published")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, checksum
