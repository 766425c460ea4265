"""Publishing weights under a key, and fetching them.

A version is hashed once, by its publisher. The checksum travels with the reference to the weights, as one entry of the
store, and a worker writes it on all that it makes with them, so that the learner refuses what foreign weights made. A
worker does not hash again what it received: Ray's objects never change and are found by their id alone, and nothing
else that travels through Ray's object store is hashed either.
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

LOOK_SECONDS = 2
PAUSE_SECONDS = 0.5  # before lost weights are asked for again
log = logging.getLogger(__name__)


class Publisher:
    """Publishes weights, and keeps those that others may still ask for: a lost store is given them once more."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.published: dict[str, tuple[Weights, str]] = {}  # and their checksum
        self.failed: Exception | None = None

    def publish(self, key: str, weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> str:
        """From now on `key` can be fetched. Return the checksum of `weights`.

        dtypes: those that weights travel in, by name; the others travel as they are. Nobody may change `weights` before
        they are forgotten.
        """
        held, cast = {name: w.detach().cpu() for name, w in weights.items()}, dtypes or {}
        checksum = weights_sha256(held)
        try:
            self._put(key, {name: _array(w.to(cast.get(name, w.dtype))) for name, w in held.items()}, checksum)
        except Exception as error:
            self.failed = error  # this may be a thread beside one that waits for what is made with these weights
            raise
        return checksum

    def _put(self, key: str, weights: Weights, checksum: str) -> None:
        ray.get(self.store.publish.remote(key, weights, checksum))
        self.published[key] = weights, checksum  # only now, or `look_after` would publish what is on its way

    def restart(self, after: int) -> None:
        """The learner goes on from version `after`: what the store has of later versions is another learner's."""
        ray.get(self.store.restart.remote(after))

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
        """Publish again what the store has lost. Raises the error of a publication that failed."""
        if self.failed is not None:
            raise self.failed
        for key in ray.get(self.store.lacks.remote(list(self.published))):
            log.warning("the weight store was lost; %s is published again", key)
            if (entry := self.published.get(key)) is not None:  # another thread may have forgotten it meanwhile
                self._put(key, *entry)


def fetch(store: Any, key: str) -> tuple[dict[str, Tensor], str]:
    """Weights `key` and their publisher's checksum. The tensors lie in Ray's shared memory: nobody may write to them.

    Raises StaleWeightsError for weights that are gone or do not come.
    """
    for attempt in range(1, ATTEMPTS + 1):
        references, checksum = ray.get(store.entry.remote(key))
        try:
            return {name: _tensor(array) for name, array in ray.get(references[0]).items()}, checksum
        except ObjectLostError as error:  # with its owner: the next store waits for those who published
            if attempt == ATTEMPTS:
                raise
            log.warning("weights %s were lost (%s); they are asked for again", key, type(error).__name__)
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _array(tensor: Tensor) -> np.ndarray:
    """The same numbers in numpy, which has no bfloat16: its bits travel as uint16, a dtype that no weights have."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array: np.ndarray) -> Tensor:
    """Inverse of `_array`, of the same memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the memory is read-only, and torch has no tensors that say so
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
