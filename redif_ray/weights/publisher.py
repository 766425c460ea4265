"""Publishing weights under a key, and fetching them: version and checksum are verified by who receives them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.faults import ATTEMPTS
from redif_ray.weights.store import StaleWeightsError, Weights

LOOK_SECONDS = 2
PAUSE_SECONDS = 0.5  # before lost weights are asked for again
log = logging.getLogger(__name__)


class Publisher:
    """Publishes weights, and keeps those that others may still ask for: a lost store is given them once more."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.published: dict[str, tuple[Weights, str]] = {}  # and their checksum

    def publish(self, key: str, weights: Mapping[str, Tensor]) -> None:
        """From now on `key` can be fetched. Nobody may change `weights` before they are forgotten."""
        held = {name: w.detach().cpu() for name, w in weights.items()}
        self._put(key, {name: w.numpy() for name, w in held.items()}, weights_sha256(held))

    def _put(self, key: str, weights: Weights, checksum: str) -> None:
        self.published[key] = weights, checksum
        ray.get(self.store.publish.remote(key, weights, checksum))

    def forget(self, before: int) -> None:
        """Nobody will ask for earlier versions."""
        self.published = {key: entry for key, entry in self.published.items() if version(key) >= before}

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
            self._put(key, *self.published[key])


def fetch(store: Any, key: str) -> tuple[dict[str, Tensor], str]:
    """Weights `key` as tensors of their own, verified, and their checksum. Raises StaleWeightsError."""
    for attempt in range(1, ATTEMPTS + 1):
        references, checksum = ray.get(store.entry.remote(key))
        try:
            return _copied(key, references, checksum), checksum
        except ObjectLostError as error:  # with its owner: the next store waits for those who published
            if attempt == ATTEMPTS:
                raise
            log.warning("weights %s were lost (%s); they are asked for again", key, type(error).__name__)
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _copied(key: str, references: list[Any], checksum: str) -> dict[str, Tensor]:
    arrays = ray.get(references[0])
    if weights_sha256(arrays) != checksum:
        raise StaleWeightsError(f"weights {key} do not match the checksum {checksum[:12]} their learner published")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def version(key: str) -> int:
    return int(key.rpartition("-")[2])
