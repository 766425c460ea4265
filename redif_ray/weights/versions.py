"""The versions of a learner's weights: published before rounds ask for them, kept while rounds to come are made with
them.

Round r is rolled out with the weights after max(0, r - staleness) rounds, and its learned reward is of that age, too.

Publishing hashes and copies all weights, which takes seconds for a student that is trained whole. A thread beside the
learner does it, and the learner goes on: whoever asks the store for a version that is on its way waits there.
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
    """publisher: None on a rank that does not publish; it keeps the same versions.

    dtypes: of those of the student's weights that travel in fewer bits than they are kept in, by name.
    """

    def __init__(
        self, plan: Phases, publisher: Publisher | None, dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        self.plan, self.publisher, self.dtypes = plan, publisher, dtypes
        self.stale: dict[str, Weights] = {}  # by key; none without staleness
        self.checksums: dict[str, Future[str]] = {}  # by key; those of versions on their way are not known yet
        self.thread = ThreadPoolExecutor(1, "publishing")  # one, so that versions come in their order

    def policy(self, round: int) -> Weights | None:
        """What rolled out `round`; None: the student as it is."""
        made_by = self.plan.version(round)
        return None if made_by == round else self.stale[policy_key(made_by)]

    def learned(self, round: int) -> Weights | None:
        """The learned reward that scored `round`; None: as it is."""
        return self.stale.get(f"{LEARNED}-{self.plan.version(round)}")

    def checksum(self, version: int) -> str:
        """Of the student after so many rounds, in the bits that it is kept in. Waits until it is published."""
        return self.checksums[policy_key(version)].result()

    def begin(self, after: int, current: Mapping[str, Weights]) -> None:
        """Publish, as a new process has to, those kept and the version after so many rounds; wait for it."""
        if self.publisher is not None:
            self.publisher.restart(after)
        for key, weights in self.stale.items():
            self._publish(key, weights)
        self.add(after, current)
        for checksum in self.checksums.values():
            checksum.result()

    def add(self, after: int, current: Mapping[str, Weights]) -> None:
        """Publish the version after so many rounds, by kind; those that no round to come needs are let go."""
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
        """Publish what the version after so many rounds would deploy."""
        if self.publisher is not None:
            self._publish(f"deploy-{after}", weights)

    def _publish(self, key: str, weights: Weights) -> None:
        """Hash and publish `weights` beside the learner; every rank hashes, to know what others must have used."""
        held = {name: w.detach().cpu() for name, w in weights.items()}  # here: devices are the learner's own thread's
        dtypes = None if key.startswith(LEARNED) else self.dtypes
        publish = weights_sha256 if self.publisher is None else partial(self.publisher.publish, key, dtypes=dtypes)
        self.checksums[key] = self.thread.submit(publish, held)

    def state(self, after: int) -> tuple[dict[str, Tensor], list[str]]:
        """(tensors, keys) of those older than the version after so many rounds, for its checkpoint."""
        earlier = [key for key in self.stale if version(key) < after]
        return {name: t for key in earlier for name, t in pack(f"stale/{key}", self.stale[key]).items()}, earlier

    def load(self, tensors: Weights, keys: list[str]) -> None:
        self.stale = {key: unpack(f"stale/{key}", tensors) for key in keys}
