"""Publishing weights under a key, and fetching them.

A version is hashed once, by its publisher. The store keeps the checksum beside the reference to the weights, and a
worker copies it into its trajectories, so that the learner can refuse those of other weights. Workers do not hash the
weights again: Ray's objects never change and are found by their id alone, and nothing else that travels through Ray's
object store is hashed either.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ObjectLostError
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.faults import ATTEMPTS
from redif_ray.weights.store import Weights, version

LOOK_SECONDS = 2  # interval at which a waiting caller checks the store
PAUSE_SECONDS = 0.5  # pause before lost weights are fetched again
log = logging.getLogger(__name__)


class Publisher:
    """Publishes weights, and keeps those that are still needed, to publish them again if the store is lost."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.published: dict[str, tuple[Weights, str]] = {}  # weights and checksum, by key
        self.failed: Exception | None = None

    def publish(self, key: str, weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> str:
        """Publish `weights` under `key`; return their checksum.

        dtypes: dtypes in which weights travel, by name; the other weights keep theirs. The caller must not change
        `weights` until `forget`.
        """
        held, cast = {name: w.detach().cpu() for name, w in weights.items()}, dtypes or {}
        checksum = weights_sha256(held)
        try:
            self._put(key, {name: _array(w.to(cast.get(name, w.dtype))) for name, w in held.items()}, checksum)
        except Exception as error:
            self.failed = error  # for `look_after`: the main thread may wait for work with these weights
            raise
        return checksum

    def _put(self, key: str, weights: Weights, checksum: str) -> None:
        ray.get(self.store.publish.remote(key, weights, checksum))
        self.published[key] = weights, checksum  # after the store has them, or `look_after` would publish them twice

    def restart(self, after: int) -> None:
        """Remove versions later than `after` from the store, because they are those of an earlier learner."""
        ray.get(self.store.restart.remote(after))

    def forget(self, before: int) -> None:
        """Forget versions earlier than `before`, which nobody will ask for."""
        self.published = {key: entry for key, entry in self.published.items() if version(key) >= before}

    def get(self, references: Any) -> Any:
        """Return `ray.get(references)`, one or a list; meanwhile repair a lost store, for which their work may wait."""
        waiting = references if isinstance(references, list) else [references]
        while waiting := ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_SECONDS)[1]:
            self.look_after()
        return ray.get(references)

    def look_after(self) -> None:
        """Publish again the weights that the store has lost. Raises the error of a publication that failed."""
        if self.failed is not None:
            raise self.failed
        for key in ray.get(self.store.lacks.remote(list(self.published))):
            log.warning("the weight store was lost; %s is published again", key)
            if (entry := self.published.get(key)) is not None:  # another thread may have forgotten it meanwhile
                self._put(key, *entry)


def fetch(store: Any, key: str) -> tuple[dict[str, Tensor], str]:
    """Return the weights `key` and their checksum. The tensors are in Ray's shared memory and must not be written to.

    Raises StaleWeightsError for weights that are gone or not published in time, and ObjectLostError where they are lost
    in every attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        references, checksum = ray.get(store.entry.remote(key))
        try:
            return {name: _tensor(array) for name, array in ray.get(references[0]).items()}, checksum
        except ObjectLostError as error:  # lost with the store that owned them; the publisher fills its successor
            if attempt == ATTEMPTS:
                raise
            log.warning("weights %s were lost (%s); they are fetched again", key, type(error).__name__)
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as numpy array; bfloat16, which numpy lacks, becomes uint16, a dtype that no weights have."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array: np.ndarray) -> Tensor:
    """Return the tensor of an array of `_array`, in the same memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the memory is read-only
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
