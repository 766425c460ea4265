"""The actor that owns the published weights and outlives the learner's processes. It needs no torch.

Should it be lost itself, those who published give it their weights again (`weights.publisher`).

Weights travel as numpy arrays (zero-copy reads) under keys `<kind>-<version>`: `policy-7` is the student after 7
rounds, `deploy-7` what that version would deploy (its average, where the learner keeps one), `discriminator-7` the
learned reward after 7 rounds.
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
WAIT_SECONDS = 600
POLICY = "policy"


class StaleWeightsError(RuntimeError):
    """Weights that are absent, or not those that were to be used."""


class WeightStore:
    """writer: the metrics writer's handle, pickled, which is told when Ray starts this actor again."""

    def __init__(self, keep: int = 4, writer: bytes | None = None) -> None:
        self.keep = keep
        self.entries: dict[str, tuple[list[Any], str]] = {}  # in order of publication
        self.gone: set[str] = set()
        self.published = asyncio.Condition()
        if writer is not None and restarted():
            cloudpickle.loads(writer).lost.remote("weight store")

    async def publish(self, key: str, weights: Weights, checksum: str) -> None:
        """Keep `weights` under `key`; the oldest of a kind go. They are put again, so that this actor owns them."""
        self.entries.pop(key, None)
        self.entries[key] = ([ray.put(weights)], checksum)
        self.gone.discard(key)
        for old in [k for k in self.entries if kind(k) == kind(key)][: -self.keep]:
            del self.entries[old]
            self.gone.add(old)
        async with self.published:
            self.published.notify_all()

    async def restart(self, after: int) -> None:
        """A learner goes on from version `after`: it makes the later ones again, and whoever asks for them waits."""
        self.entries = {key: entry for key, entry in self.entries.items() if version(key) <= after}
        self.gone = {key for key in self.gone if version(key) <= after}

    async def lacks(self, keys: list[str]) -> list[str]:
        """Those of `keys` that were never published here, as after this actor was lost."""
        return [key for key in keys if key not in self.entries and key not in self.gone]

    async def entry(self, key: str) -> tuple[list[Any], str]:
        """([reference], checksum): the reference travels inside a list, so the arrays are not copied through here.

        Who asks before the learner has published, for the first time or again, waits.
        Raises StaleWeightsError for weights that are gone.
        """
        while key not in self.entries:
            if key in self.gone:
                raise StaleWeightsError(f"weights {key} are gone: the last {self.keep} of a kind are kept at most")
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
    """Of the learned reward after `version` rounds; None for a run without one."""
    return f"{LEARNED}-{version}" if LEARNED in config.reward.terms else None
