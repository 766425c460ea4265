"""DiffusionNFT (Zheng et al., arXiv 2509.16117) on a few-step student: better of its own images against worse ones.

A round has several images of each condition, each from a noise of its own, and compares their rewards. The learner
noises them anew and draws its predictions towards the better ones and away from the worse ones. It suits rewards that
the start noise decides, such as what is in an image and how often. Agreement with the teacher's image of the same noise
is better served by `output`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redif_ray.methods.phase import Calls, Prices, RewardedPhase, Scoring
from redif_ray.types import Scored

if TYPE_CHECKING:
    from redif_ray.learning.earlier import EarlierStudent
    from redif_ray.learning.round_update import Learning, Round


class Contrast(RewardedPhase):
    """The rounds of the contrast of own images."""

    name, title, reads_means, reads_last = "contrast", "contrast of own images", False, True
    earlier_students = 1

    @property
    def groups(self) -> int:
        return self.config.contrast.groups

    @property
    def alike(self) -> int:
        return self.config.contrast.noises

    @property
    def unit_groups(self) -> int:
        """Return the number of groups in a work unit: all noises of `rollout.unit_groups` conditions."""
        return self.config.rollout.unit_groups * self.alike

    def companion(self, learning: Learning) -> EarlierStudent:
        """Return the average of the student with which it is compared."""
        from redif_ray.learning.earlier import EarlierStudent

        return EarlierStudent(learning.student, self.config.contrast.decay)

    def score(self, scoring: Scoring) -> Scored:
        return Scored(scoring.unit, scoring.terms(), None, None)

    def calls(self, prices: Prices) -> Calls:
        groups = self.rounds * self.groups
        own = groups * prices.student
        return Calls(
            rollout=own * self.config.student.steps,
            reward=groups * self.teacher_images * prices.target,
            learner=own * self.config.contrast.draws * (1 + prices.backward),
        )

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Compare the images of each condition, take the optimiser steps, and average in the student they lead to."""
        from redif_ray.learning import round_update as learn
        from redif_ray.learning.contrast import ContrastUpdater
        from redif_ray.learning.step import learning_rate

        relative, metrics = learn.relative_rewards(learning, round.metas, self.alike)
        batch, scored = learn.batch_of(learning, round, self.stds(learning.schedule, round.number), relative.values)
        groups = [group for each in scored for group in each.unit.groups]
        updater = ContrastUpdater(learning, batch, groups, round.number)
        lr = learning_rate(self.config.learner, round.number - self.first_round)
        found = updater.run(self.config.contrast.draws, lr)
        learning.companion.follow()
        return metrics | {f"update/{name}": value for name, value in found.items()}
