"""Multistep consistency distillation (Heek et al., arXiv 2403.06807): one step to the end of each of N segments.

From a noised image of the teacher the student's step to the end of the segment is regressed on a small step of the
teacher and, from there, the step of an average of the student. It is a control arm without reward.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from redif_ray.methods.phase import Calls, MethodPhase, Prices

if TYPE_CHECKING:
    from redif_ray.learning.earlier import EarlierStudent
    from redif_ray.learning.round_update import Learning, Round


class Consistency(MethodPhase):
    """The rounds of consistency distillation."""

    name, title, plays, optimises_reward = "consistency", "consistency distillation", False, False
    learner_reads, encodes_images, earlier_students = ("targets",), True, 1

    @property
    def groups(self) -> int:
        return self.config.consistency.groups

    def companion(self, learning: Learning) -> EarlierStudent:
        """Return the average of the student towards which it learns."""
        from redif_ray.learning.earlier import EarlierStudent

        return EarlierStudent(learning.student, self.config.consistency.decay)

    def calls(self, prices: Prices) -> Calls:
        groups = self.rounds * self.groups
        steps = groups * self.config.consistency.draws
        alone = 1 / self.config.consistency.substeps  # the share of steps that end where the teacher's does
        own = prices.student * (1 - alone + prices.backward)  # of the average, and of the student
        return Calls(reward=groups * prices.target, learner=steps * (prices.teacher + own))

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Take optimiser steps towards a step of the teacher and one of the averaged student."""
        from redif_ray.learning import two_steps
        from redif_ray.learning.step import learning_rate

        config, student, teacher = self.config, learning.student, learning.teacher
        assert teacher is not None, "learner.fsdp=true is refused for this method"
        steps = two_steps.segment_steps(student.process, learning.schedule, config.consistency.substeps)
        guided, own = teacher.calls_per_step(config.teacher.guidance), student.calls_per_step(config.student.guidance)
        taught = two_steps.Taught(
            partial(teacher.predict, guidance=config.teacher.guidance),
            partial(student.predict, guidance=config.student.guidance),
            starts=steps.t,
            costs=(guided / own, 1.0),
            during=learning.companion.in_place,
        )
        lr = learning_rate(config.learner, round.number - self.first_round)
        updater = two_steps.TwoStepUpdater(learning, round, steps, taught)
        metrics = updater.run(config.consistency.draws, lr, after=learning.companion.follow)
        return {f"update/{name}": value for name, value in metrics.items()}
