"""The versions of a learner's weights: published before rounds ask for them, kept while rounds to come are made with
them.

Round r is rolled out with the weights after max(0, r - staleness) rounds, and its learned reward is of that age, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from redif_ray.checkpoint import pack, unpack
from redif_ray.config import LEARNED
from redif_ray.planning.rounds import Phases
from redif_ray.weights.publisher import Publisher, version
from redif_ray.weights.store import policy_key

Weights = Mapping[str, Tensor]


class Versions:
    """publisher: None on a rank that does not publish; it keeps the same versions."""

    def __init__(self, plan: Phases, publisher: Publisher | None) -> None:
        self.plan, self.publisher = plan, publisher
        self.stale: dict[str, Weights] = {}  # by key; none without staleness

    def policy(self, round: int) -> Weights | None:
        """What rolled out `round`; None: the student as it is."""
        made_by = self.plan.version(round)
        return None if made_by == round else self.stale[policy_key(made_by)]

    def learned(self, round: int) -> Weights | None:
        """The learned reward that scored `round`; None: as it is."""
        return self.stale.get(f"{LEARNED}-{self.plan.version(round)}")

    def begin(self) -> None:
        """Publish those kept, as a new process has to."""
        for key, weights in self.stale.items():
            self._publish(key, weights)

    def add(self, after: int, current: Mapping[str, Weights]) -> None:
        """Publish the version after so many rounds, by kind; those that no round to come needs are let go."""
        for kind, weights in current.items():
            self._publish(f"{kind}-{after}", weights)
            if self.plan.config.pipeline.staleness:
                self.stale[f"{kind}-{after}"] = weights
        oldest = self.plan.version(after)
        self.stale = {key: weights for key, weights in self.stale.items() if version(key) >= oldest}
        if self.publisher is not None:
            self.publisher.forget(before=oldest)

    def deploy(self, after: int, weights: Weights) -> None:
        """Publish what the version after so many rounds would deploy."""
        self._publish(f"deploy-{after}", weights)

    def _publish(self, key: str, weights: Weights) -> None:
        if self.publisher is not None:
            self.publisher.publish(key, weights)

    def state(self, after: int) -> tuple[dict[str, Tensor], list[str]]:
        """(tensors, keys) of those older than the version after so many rounds, for its checkpoint."""
        earlier = [key for key in self.stale if version(key) < after]
        return {name: t for key in earlier for name, t in pack(f"stale/{key}", self.stale[key]).items()}, earlier

    def load(self, tensors: Weights, keys: list[str]) -> None:
        self.stale = {key: unpack(f"stale/{key}", tensors) for key in keys}
