"""The plan of a run: phases, rounds, groups and work units, as pure functions of the configuration.

Any part of the work can therefore be done again, by any process, with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.judge_source import needs_reference
from redif_ray.evaluation.reference import reference_count
from redif_ray.methods import Deploy, Phase, phases_of
from redif_ray.types import Condition, WorkUnit

REFERENCE_ROWS = 500  # reference images of a work unit


class Phases:
    """The phases of a run and their rounds: the warm start first, then the method's own phase."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.phases = phases_of(config)
        self.rounds = sum(phase.rounds for phase in self.phases)

    def phase(self, round: int) -> Phase:
        """Return the phase of a round in [0, rounds)."""
        return next(phase for phase in reversed(self.phases) if round >= phase.first_round)

    def named(self, name: str) -> Phase:
        """Return the phase called `name`."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def teacher_images(self) -> int:
        """Return the number of teacher images that the training rounds need."""
        return sum(phase.rounds * phase.groups for phase in self.phases if phase.teacher_images)

    def version(self, round: int) -> int:
        """Return the version, the number of rounds learned, of the policy and learned reward that a round uses."""
        return max(0, round - self.config.pipeline.staleness)


class RoundPlan(Phases):
    """The rounds of a run, cut into work units of fixed size."""

    def __init__(self, config: Config, conditions: Conditions) -> None:
        super().__init__(config)
        self.conditions = conditions

    def units(self, round: int) -> list[WorkUnit]:
        """Return the work units of a training round."""
        phase = self.phase(round)
        first = (round - phase.first_round) * phase.groups
        groups = [self._group(phase, i) for i in range(first, first + phase.groups)]
        return self._cut(round, phase.name, Stream.TRAIN, groups, phase.unit_groups, phase.siblings)

    def sampled_with(self, unit: WorkUnit) -> WorkUnit:
        """Return the groups whose teacher images are sampled at once with those of a training unit, as a work unit.

        They are a block of consecutive groups of the phase, of `teacher.batch` images or as many whole units as that
        holds, so they depend on no other unit's place in a round.
        """
        phase = self.named(unit.phase)
        size = teacher_block(self.config, phase)
        if size <= len(unit.groups):
            return unit
        pool, origin = self.config.conditions.pool, self._origin(phase)
        count = pool if pool is not None else phase.rounds * phase.groups
        start = (unit.groups[0] - origin) // size * size
        groups = tuple(range(origin + start, origin + min(start + size, count)))
        return replace(unit, groups=groups, conditions=tuple(self._condition(unit.stream, g, phase) for g in groups))

    def deploy(self, stream: Stream, count: int, *, round: int = 0, size: int | None = None) -> list[WorkUnit]:
        """Return work units that sample `count` groups of a stream the way the student is deployed.

        size: groups of a work unit; None: `evaluation.batch`. All groups of a condition whose diversity is measured are
        in one work unit.
        """
        size = size or self.config.evaluation.images_at_once
        if stream == Stream.DIVERSITY:
            size -= size % self.config.evaluation.diversity.noises
        return self._cut(round, Deploy.name, stream, list(range(count)), size, 1)

    def _group(self, phase: Phase, position: int) -> int:
        """Return the group at a position among all groups of a phase; phases share the pool and pass over it anew."""
        pool = self.config.conditions.pool
        if pool is None:
            return phase.first_group + position
        together = kept_together(pool, phase)
        epoch, offset = divmod(position, pool)
        block, inside = divmod(offset, together)
        ids = {"seed": self.config.run.seed, "round": epoch, "step": phase.first_round}
        order = noise.permutation(pool // together, Stream.CONDITION, **ids)
        return int(order[block]) * together + inside

    def _origin(self, phase: Phase) -> int:
        """Return the least group of a phase."""
        return phase.first_group if self.config.conditions.pool is None else 0

    def _cut(
        self, round: int, phase: str, stream: Stream, groups: Sequence[int], size: int, siblings: int
    ) -> list[WorkUnit]:
        parts = [tuple(groups[i : i + size]) for i in range(0, len(groups), size)]
        of = self.named(phase) if stream == Stream.TRAIN else None
        return [
            WorkUnit(round, index, phase, stream, part, tuple(self._condition(stream, g, of) for g in part), siblings)
            for index, part in enumerate(parts)
        ]

    def _condition(self, stream: Stream, group: int, phase: Phase | None) -> Condition:
        """Return the condition of a group. phase: of a training group."""
        if phase is not None:
            first = self._origin(phase)
            return self.conditions.of(stream, first + (group - first) // phase.alike)
        alike = self.config.evaluation.diversity.noises if stream == Stream.DIVERSITY else 1
        return self.conditions.of(stream, group // alike)


def kept_together(pool: int, phase: Phase) -> int:
    """Return how many groups of a pool stay together in every pass over it.

    These are a work unit's, so that the stored images of the teacher serve all passes, where such units divide the pool
    and the rounds; or 1, and every pass cuts other units.
    """
    return 1 if pool % phase.unit_groups or phase.groups % phase.unit_groups else phase.unit_groups


def teacher_block(config: Config, phase: Phase) -> int:
    """Return the number of a phase's groups whose teacher images are sampled at once: those of whole work units."""
    unit, pool = phase.unit_groups, config.conditions.pool
    if phase.groups % unit:
        return unit
    if pool is not None and (kept_together(pool, phase) != unit or pool > phase.rounds * phase.groups):
        return unit  # a block would have groups of the pool that the phase never comes to
    return max(1, config.teacher.batch // unit) * unit


def distinct_groups(config: Config, phase: Phase) -> int:
    """Return the number of groups of a phase whose images of the teacher are made and stored.

    A file has the images of a work unit, so a pool of noises is stored once if the groups of a unit stay together.
    """
    groups, pool = phase.rounds * phase.groups, config.conditions.pool
    return min(groups, pool) if pool is not None and kept_together(pool, phase) == phase.unit_groups else groups


def units_at_once(config: Config) -> int:
    """Return the number of work units of a deployment that are in progress at once: two for each worker."""
    return 2 * (config.rollout.max_workers + config.reward.max_workers)


def versions_kept(config: Config) -> int:
    """Return how many versions of a kind a run needs at once.

    These are the one that the learner publishes, those that rounds are rolled out with meanwhile, and the one before.
    """
    return config.pipeline.staleness + 2


def reference_units(plan: RoundPlan, count: int) -> list[WorkUnit]:
    """Return work units whose groups are the judge's reference: rows of its own images, or noises of the teacher.

    count: number of noises for a judge without images of its own.
    """
    source = plan.config.evaluation.judge
    if needs_reference(source):
        return plan.deploy(Stream.REFERENCE, count)
    return plan.deploy(Stream.REFERENCE, reference_count(source, count), size=REFERENCE_ROWS)
