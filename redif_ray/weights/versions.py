"""The versions of a learner's weights: published before a round needs them, and kept while a later round does.

Round r is rolled out with the weights after max(0, r - staleness) rounds, and scored by the learned reward of the same
version.

Publishing hashes and copies all weights, which takes seconds for a student without adapters. A thread does it while the
learner goes on; a caller that asks the store for a version not yet published waits there.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from redif_ray.checkpoint import pack, unpack, weights_sha256
from redif_ray.config import LEARNED
from redif_ray.planning.rounds import Phases
from redif_ray.weights.publisher import Publisher
from redif_ray.weights.store import policy_key, version

Weights = Mapping[str, Tensor]


class Versions:
    """Publishes and keeps the versions of the weights on one rank.

    publisher: None on a rank that does not publish; such a rank keeps the same versions.
    dtypes: dtypes, by name, of the student's weights that travel in fewer bits than the learner keeps.
    """

    def __init__(
        self, plan: Phases, publisher: Publisher | None, dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        self.plan, self.publisher, self.dtypes = plan, publisher, dtypes
        self.stale: dict[str, Weights] = {}  # older versions by key; empty without staleness
        self.checksums: dict[str, Future[str]] = {}  # by key; pending until the version is published
        self.thread = ThreadPoolExecutor(1, "publishing")  # one thread, so that versions are published in order

    def policy(self, round: int) -> Weights | None:
        """Return the weights that rolled out `round`; None: the student's current weights."""
        made_by = self.plan.version(round)
        return None if made_by == round else self.stale[policy_key(made_by)]

    def learned(self, round: int) -> Weights | None:
        """Return the weights of the learned reward that scored `round`; None: the current ones."""
        return self.stale.get(f"{LEARNED}-{self.plan.version(round)}")

    def checksum(self, version: int) -> str:
        """Wait until the student after `version` rounds is published; return the checksum of its weights as kept."""
        return self.checksums[policy_key(version)].result()

    def begin(self, after: int, current: Mapping[str, Weights]) -> None:
        """Publish the kept versions and the version after `after` rounds, as a new process must; wait until done."""
        if self.publisher is not None:
            self.publisher.restart(after)
        for key, weights in self.stale.items():
            self._publish(key, weights)
        self.add(after, current)
        for checksum in self.checksums.values():
            checksum.result()

    def add(self, after: int, current: Mapping[str, Weights]) -> None:
        """Publish the version after `after` rounds, by kind, and forget versions that no later round needs."""
        for kind, weights in current.items():
            self._publish(f"{kind}-{after}", weights)
            if self.plan.config.pipeline.staleness:
                self.stale[f"{kind}-{after}"] = weights
        oldest = self.plan.version(after)
        self.stale = {key: weights for key, weights in self.stale.items() if version(key) >= oldest}
        self.checksums = {key: checksum for key, checksum in self.checksums.items() if version(key) >= oldest}
        if self.publisher is not None:
            self.thread.submit(self.publisher.forget, before=oldest)

    def deploy(self, after: int, weights: Weights) -> None:
        """Publish the weights to deploy of the version after `after` rounds."""
        if self.publisher is not None:
            self._publish(f"deploy-{after}", weights)

    def _publish(self, key: str, weights: Weights) -> None:
        """Hash and publish `weights` in the thread; every rank hashes, to check which weights made the trajectories."""
        held = {name: w.detach().cpu() for name, w in weights.items()}  # only this thread may use the device
        dtypes = None if key.startswith(LEARNED) else self.dtypes
        publish = weights_sha256 if self.publisher is None else partial(self.publisher.publish, key, dtypes=dtypes)
        self.checksums[key] = self.thread.submit(publish, held)

    def state(self, after: int) -> tuple[dict[str, Tensor], list[str]]:
        """Return (tensors, keys) of the versions older than `after` rounds, for the checkpoint at `after`."""
        earlier = [key for key in self.stale if version(key) < after]
        return {name: t for key in earlier for name, t in pack(f"stale/{key}", self.stale[key]).items()}, earlier

    def load(self, tensors: Weights, keys: list[str]) -> None:
        """Restore the older versions from the tensors of a checkpoint and the keys in its meta."""
        self.stale = {key: unpack(f"stale/{key}", tensors) for key in keys}
