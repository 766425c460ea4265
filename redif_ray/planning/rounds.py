"""Which groups each round works on: a pure function of the configuration, so that any part can be done again."""

from __future__ import annotations

from collections.abc import Sequence

from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.types import Phase, Shard


class Phases:
    """The rounds of a run: warm start first, then the method's own."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.warm_rounds = config.warm_start.rounds
        self.rounds = self.warm_rounds + (0 if config.method == "sfd" else config.learner.rounds)

    def phase(self, round: int) -> Phase:
        if round < self.warm_rounds:
            return "warm_start"
        return "draft" if self.config.method == "draft" else "policy"

    def version(self, round: int) -> int:
        """Of the policy that rolls out a round, and of a learned reward that scores it: rounds that it has learned."""
        return max(0, round - self.config.pipeline.staleness)


class RoundPlan(Phases):
    """The rounds of a run, cut into shards of fixed size."""

    def __init__(self, config: Config, conditions: Conditions) -> None:
        super().__init__(config)
        self.conditions = conditions

    def shards(self, round: int) -> list[Shard]:
        """The shards of a training round."""
        phase, c = self.phase(round), self.config
        warm_groups = self.warm_rounds * c.warm_start.groups
        if phase == "warm_start":
            first, count, siblings = round * c.warm_start.groups, c.warm_start.groups, 1
        else:
            per_round = c.rollout.groups if phase == "policy" else c.draft.groups
            first = warm_groups + (round - self.warm_rounds) * per_round
            count, siblings = per_round, c.rollout.siblings if phase == "policy" else 1
        size = c.rollout.shard_groups if phase == "policy" else c.rollout.shard_groups * c.rollout.siblings
        groups = [self._group(i) for i in range(first, first + count)]
        return self._cut(round, phase, Stream.TRAIN, groups, size, siblings)

    def deploy(self, stream: Stream, count: int, *, round: int = 0, size: int | None = None) -> list[Shard]:
        """Shards that sample `count` groups of a stream the way the student is deployed, `evaluation.batch` each."""
        return self._cut(round, "deploy", stream, list(range(count)), size or self.config.evaluation.batch, 1)

    def _group(self, position: int) -> int:
        pool = self.config.conditions.pool
        if pool is None:
            return position
        epoch, offset = divmod(position, pool)
        return int(noise.permutation(pool, Stream.CONDITION, seed=self.config.run.seed, round=epoch)[offset])

    def _cut(
        self, round: int, phase: Phase, stream: Stream, groups: Sequence[int], size: int, siblings: int
    ) -> list[Shard]:
        parts = [tuple(groups[i : i + size]) for i in range(0, len(groups), size)]
        return [
            Shard(round, index, phase, stream, part, tuple(self.conditions.of(stream, g) for g in part), siblings)
            for index, part in enumerate(parts)
        ]
