"""The actor that owns the published weights and outlives the learner's processes. It needs no torch.

If this actor itself is lost, the publisher gives its successor the weights again (`weights.publisher`).

Weights travel as numpy arrays (zero-copy reads) under keys `<kind>-<version>`: `policy-7` is the student after 7
rounds, `deploy-7` the weights to deploy of that version (the average, where the learner keeps one), and
`discriminator-7` the learned reward after 7 rounds.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from redif_ray.config import LEARNED, Config
from redif_ray.faults import restarted

Weights = dict[str, np.ndarray]
WAIT_SECONDS = 600  # time that a caller waits for any publication
POLICY = "policy"


class StaleWeightsError(RuntimeError):
    """The weights are gone or were not published, or other weights were used than expected."""


class WeightStore:
    """Keeps the last `keep` versions of each kind of weights.

    keep: see `planning.rounds.versions_kept`. writer: pickled handle of the metrics writer, to which a restart of
    this actor is reported.
    """

    def __init__(self, keep: int = 2, writer: bytes | None = None) -> None:
        self.keep = keep
        self.entries: dict[str, tuple[list[Any], str]] = {}  # ([reference], checksum) by key, in order of publication
        self.gone: set[str] = set()  # keys that were published here and dropped
        self.published = asyncio.Condition()
        if writer is not None and restarted():
            cloudpickle.loads(writer).lost.remote("weight store")

    async def publish(self, key: str, weights: Weights, checksum: str) -> None:
        """Keep `weights` under `key` and drop the oldest of the kind; a new put makes this actor their owner."""
        self.entries.pop(key, None)
        self.entries[key] = ([ray.put(weights)], checksum)
        self.gone.discard(key)
        for old in [k for k in self.entries if kind(k) == kind(key)][: -self.keep]:
            del self.entries[old]
            self.gone.add(old)
        async with self.published:
            self.published.notify_all()

    async def restart(self, after: int) -> None:
        """Forget versions later than `after`: a restarted learner makes them again, and callers wait for them."""
        self.entries = {key: entry for key, entry in self.entries.items() if version(key) <= after}
        self.gone = {key for key in self.gone if version(key) <= after}

    async def lacks(self, keys: list[str]) -> list[str]:
        """Return those of `keys` that were never published here, as is the case after a restart of this actor."""
        return [key for key in keys if key not in self.entries and key not in self.gone]

    async def entry(self, key: str) -> tuple[list[Any], str]:
        """Return ([reference], checksum), waiting until the learner has published `key`, for the first time or again.

        The reference travels inside a list so that Ray does not fetch the arrays into this process.
        Raises StaleWeightsError for weights that are gone, or not published in time.
        """
        while key not in self.entries:
            if key in self.gone:
                raise StaleWeightsError(f"weights {key} are gone: only the last {self.keep} of a kind are kept")
            async with self.published:
                try:
                    await asyncio.wait_for(self.published.wait(), WAIT_SECONDS)
                except TimeoutError as error:
                    raise StaleWeightsError(f"weights {key} were not published within {WAIT_SECONDS} s") from error
        return self.entries[key]


def kind(key: str) -> str:
    return key.rpartition("-")[0]


def version(key: str) -> int:
    return int(key.rpartition("-")[2])


def policy_key(version: int) -> str:
    return f"{POLICY}-{version}"


def learned_key(config: Config, version: int) -> str | None:
    """Return the key of the learned reward after `version` rounds, or None for a run without one."""
    return f"{LEARNED}-{version}" if LEARNED in config.reward.terms else None
