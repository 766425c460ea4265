"""Progressive distillation (Salimans & Ho, arXiv 2202.00512): halve the steps again and again.

Each stage teaches the student to do in one step what takes the student of the stage before it two; the first stage
halves the teacher's. It trains on noised images of the teacher. It is a control arm without reward.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from redif_ray.methods.phase import Calls, MethodPhase, Prices

if TYPE_CHECKING:
    from redif_ray.learning.earlier import EarlierStudent
    from redif_ray.learning.round_update import Learning, Round


class Progressive(MethodPhase):
    """The rounds of progressive distillation, divided evenly among `progressive.halvings` stages."""

    name, title, plays, optimises_reward = "progressive", "progressive distillation", False, False
    learner_reads, encodes_images, earlier_students = ("targets",), True, 1

    @property
    def groups(self) -> int:
        return self.config.progressive.groups

    def companion(self, learning: Learning) -> EarlierStudent:
        """Return the student of the stage before."""
        from redif_ray.learning.earlier import EarlierStudent

        return EarlierStudent(learning.student, 0.0)

    def calls(self, prices: Prices) -> Calls:
        groups, settings = self.rounds * self.groups, self.config.progressive
        steps = groups * settings.draws
        halved = 2 * (prices.teacher + (settings.halvings - 1) * prices.student) / settings.halvings
        return Calls(reward=groups * prices.target, learner=steps * (halved + prices.student * prices.backward))

    def stage(self, round: int) -> tuple[int, int]:
        """Return the stage of a round of the run, from 0, and the number of the stage's first round in the phase."""
        halvings, own = self.config.progressive.halvings, round - self.first_round
        stage = own * halvings // self.rounds
        return stage, -(-stage * self.rounds // halvings)

    def begins_anew(self, round: int) -> bool:
        return self.stage(round)[1] == round - self.first_round

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Take optimiser steps towards two steps of the teacher or, after the first stage, of the earlier student."""
        from contextlib import nullcontext

        from redif_ray.learning import two_steps
        from redif_ray.learning.step import learning_rate

        config, student, teacher = self.config, learning.student, learning.teacher
        assert teacher is not None, "learner.fsdp=true is refused for this method"
        (stage, first), settings, own = self.stage(round.number), config.progressive, round.number - self.first_round
        if stage and own == first:
            learning.companion.follow()
        steps = two_steps.halved_steps(student.process, learning.schedule, 2 ** (settings.halvings - 1 - stage))
        model, guidance = (student, config.student.guidance) if stage else (teacher, config.teacher.guidance)
        cost = model.calls_per_step(guidance) / student.calls_per_step(config.student.guidance)
        taught = two_steps.Taught(
            partial(model.predict, guidance=guidance),
            partial(model.predict, guidance=guidance),
            starts=steps.called if stage else steps.t,
            costs=(cost, cost),
            during=learning.companion.in_place if stage else nullcontext,
        )
        lr = learning_rate(config.learner, (own - first) * settings.halvings)  # which falls once in each stage
        metrics = two_steps.TwoStepUpdater(learning, round, steps, taught).run(settings.draws, lr)
        return {f"update/{name}": value for name, value in metrics.items()}
