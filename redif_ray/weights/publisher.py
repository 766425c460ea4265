"""Publishing weights under a key, and fetching them: version and checksum are verified by who receives them.

With `pipeline.weights=direct` a policy's weights stay with their publisher, and whoever fetches them reads them there;
all others (what is deployed, a learned reward) go through the object store.
"""

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
from redif_ray.weights.direct import Offer, ReadError, read
from redif_ray.weights.store import POLICY, Address, StaleWeightsError, Weights, kind

LOOK_SECONDS = 2
PAUSE_SECONDS = 0.5  # before lost weights are asked for again
log = logging.getLogger(__name__)


class Publisher:
    """What this process has published and others may still ask for. A store that was lost is given it once more.

    direct: `pipeline.weights=direct`.
    """

    def __init__(self, store: Any, direct: bool = False) -> None:
        self.store, self.direct = store, direct
        self.published: dict[str, tuple[Weights | Offer, str]] = {}  # and their checksum

    def publish(self, key: str, weights: Mapping[str, Tensor]) -> None:
        """From now on `key` can be fetched. Nobody may change `weights` before they are forgotten."""
        held = {name: w.detach().cpu() for name, w in weights.items()}
        direct = self.direct and kind(key) == POLICY
        self._put(key, Offer(held) if direct else {n: w.numpy() for n, w in held.items()}, weights_sha256(held))

    def _put(self, key: str, weights: Weights | Offer, checksum: str) -> None:
        self.published[key] = weights, checksum
        sent = weights.address if isinstance(weights, Offer) else weights
        ray.get(self.store.publish.remote(key, sent, checksum))

    def forget(self, before: int) -> None:
        """Nobody will ask for earlier versions."""
        earlier = {key: self.published.pop(key)[0] for key in [*self.published] if version(key) < before}
        offers = {key: weights for key, weights in earlier.items() if isinstance(weights, Offer)}
        if offers:
            ray.get(self.store.withdraw.remote(list(offers)))
        for offer in offers.values():
            offer.withdraw()

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
    """Weights `key` as tensors of their own, verified, and their checksum.

    Raises StaleWeightsError, and ReadError for those of a learner that died: its successor publishes them at another
    address and asks for its rounds again, so nobody waits for what is asked here in vain.
    """
    for attempt in range(1, ATTEMPTS + 1):
        found, checksum = ray.get(store.entry.remote(key))
        try:
            return (_read if isinstance(found, Address) else _copied)(key, found, checksum), checksum
        except (ObjectLostError, ReadError) as error:  # with its owner: the next store waits for those who published
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


def _read(key: str, address: Address, checksum: str) -> dict[str, Tensor]:
    """A mismatch is a loss here: memory that its publisher let go of can be read for a while."""
    weights = read(address)
    if weights_sha256(weights) != checksum:
        raise ReadError(f"what was read as weights {key} does not match their checksum {checksum[:12]}")
    return weights


def version(key: str) -> int:
    return int(key.rpartition("-")[2])
