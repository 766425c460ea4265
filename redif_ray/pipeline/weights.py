"""Publishing weights under a key, and fetching them: version and checksum are verified by who receives them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.pipeline.faults import ATTEMPTS
from redif_ray.pipeline.weight_store import StaleWeightsError, Weights

LOOK_SECONDS = 2
log = logging.getLogger(__name__)


class Publisher:
    """What this process has published and others may still ask for. A store that was lost is given it once more."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.published: dict[str, Weights] = {}

    def publish(self, key: str, weights: Mapping[str, Tensor]) -> None:
        """Put `weights` into the store; from now on `key` can be fetched."""
        self._put(key, {name: w.detach().cpu().numpy() for name, w in weights.items()})

    def _put(self, key: str, arrays: Weights) -> None:
        self.published[key] = arrays
        ray.get(self.store.publish.remote(key, arrays, weights_sha256(arrays)))

    def forget(self, before: int) -> None:
        """Nobody will ask for earlier versions."""
        self.published = {key: arrays for key, arrays in self.published.items() if version(key) >= before}

    def get(self, references: Any) -> Any:
        """`ray.get` of one reference or a list of them, which notices a lost store: what is waited for may need it."""
        waiting = references if isinstance(references, list) else [references]
        while waiting := ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_SECONDS)[1]:
            self.look_after()
        return ray.get(references)

    def look_after(self) -> None:
        """Publish again what the store has lost."""
        for key in ray.get(self.store.lacks.remote(list(self.published))):
            log.warning("the weight store was lost; %s is published again", key)
            self._put(key, self.published[key])


def fetch(store: Any, key: str) -> tuple[dict[str, Tensor], str]:
    """Weights `key` as tensors of their own, verified, and their checksum. Raises StaleWeightsError."""
    arrays, checksum = _fetch(store, key)
    if weights_sha256(arrays) != checksum:
        raise StaleWeightsError(f"weights {key} do not match the checksum {checksum[:12]} their learner published")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, checksum


def _fetch(store: Any, key: str) -> tuple[Weights, str]:
    for attempt in range(1, ATTEMPTS + 1):
        (reference,), checksum = ray.get(store.entry.remote(key))
        try:
            return ray.get(reference), checksum
        except ObjectLostError as error:  # with its owner: the next store waits for those who published
            if attempt == ATTEMPTS:
                raise
            log.warning("weights %s were lost (%s); they are asked for again", key, type(error).__name__)
    raise AssertionError("the last attempt returns or raises")


def version(key: str) -> int:
    return int(key.rpartition("-")[2])
