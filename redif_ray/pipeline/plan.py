"""Which groups each round works on: a pure function of the configuration, so that any part can be done again."""

from __future__ import annotations

from collections.abc import Sequence

from redif_ray.config import Config, ConfigError
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.types import Condition, Phase, Shard


class RoundPlan:
    """The rounds of a run, cut into shards of fixed size: warm start first, then the method's own rounds."""

    def __init__(self, config: Config, num_classes: int | None) -> None:
        self.config = config
        self.classes = _classes(config, num_classes)
        self.warm_rounds = config.warm_start.rounds
        self.rounds = self.warm_rounds + (0 if config.method == "sfd" else config.learner.rounds)

    def phase(self, round: int) -> Phase:
        if round < self.warm_rounds:
            return "warm_start"
        return "draft" if self.config.method == "draft" else "policy"

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

    def deploy(self, stream: Stream, count: int, *, round: int = 0) -> list[Shard]:
        """Shards that sample `count` groups of a stream the way the student is deployed."""
        return self._cut(round, "deploy", stream, list(range(count)), self.config.evaluation.batch, 1)

    def condition(self, group: int) -> Condition:
        """Classes in turn: every round and every set is as balanced as its size allows."""
        return None if self.classes is None else self.classes[group % len(self.classes)]

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
            Shard(round, index, phase, stream, part, tuple(self.condition(g) for g in part), siblings)
            for index, part in enumerate(parts)
        ]


def _classes(config: Config, num_classes: int | None) -> tuple[int, ...] | None:
    wanted = config.conditions
    if wanted.kind == "none" or (wanted.kind == "auto" and num_classes is None):
        if wanted.classes is not None:
            raise ConfigError(
                f"conditions.classes={list(wanted.classes)}: the model is sampled without classes; remove it"
                " or set conditions.kind=class"
            )
        return None
    if num_classes is None:
        raise ConfigError("conditions.kind=class: this teacher is unconditional; expected auto or none")
    if wanted.classes is None:
        return tuple(range(num_classes))
    bad = [c for c in wanted.classes if not 0 <= c < num_classes]
    if bad:
        raise ConfigError(f"conditions.classes={bad}: expected values in 0..{num_classes - 1}")
    return wanted.classes
