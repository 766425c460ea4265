"""ReDiF (arXiv 2512.22802): a policy gradient on the agreement of student and teacher images.

The student is a policy, its denoising trajectory an episode, and the reward compares its image with the teacher's from
the same noise and condition. A round has G groups of K siblings. Siblings share the start latent, the condition and the
teacher's image and explore with different noise, so the rewards of a group tell which of its trajectories did better.
With one pass over a fresh round ratios are 1, so that the loss's clip bounds nothing and the update is REINFORCE's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redif_ray.methods.phase import Calls, Prices, RewardedPhase, Scoring
from redif_ray.types import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from redif_ray.diffusion.schedules import Schedule
    from redif_ray.learning.round_update import Learning, Round


class Policy(RewardedPhase):
    """The rounds of the policy gradient."""

    name, title, trains_rewards = "policy", "policy gradient", True

    @property
    def groups(self) -> int:
        return self.config.rollout.groups

    @property
    def siblings(self) -> int:
        return self.config.rollout.siblings

    @property
    def teacher_images(self) -> bool:
        return super().teacher_images or self.config.learner.anchor.gated

    @property
    def asks_jumps(self) -> bool:
        return self.config.learner.anchor.weight > 0

    @property
    def reads_every_state(self) -> bool:
        return self.config.learner.trains_every_step

    @property
    def reads_means(self) -> bool:
        """Tell whether the surrogate reads the rollout's means; a learner that recomputes densities has its own."""
        from redif_ray.learning.losses import WITHOUT_MEANS
        from redif_ray.learning.rounding import rounds_apart

        return self.config.learner.loss not in WITHOUT_MEANS and not rounds_apart(self.config)

    def stds(self, schedule: Schedule, round: int) -> Tensor:
        """Explore at all steps or, with `exploration.one_step`, at one of them in turn."""
        from redif_ray.learning.exploration import explored_stds

        return explored_stds(schedule, self.config.exploration, round)

    def score(self, scoring: Scoring) -> Scored:
        """Evaluate the reward terms and, where the loss asks for them, the teacher's own terms and its jumps."""
        anchor = self.config.learner.anchor
        return Scored(
            scoring.unit,
            terms=scoring.terms(),
            targets=scoring.targets if scoring.learns else None,
            anchors=scoring.jumps(anchor.substeps) if self.asks_jumps else None,
            images=scoring.images() if scoring.learns else None,
            teacher_terms=scoring.teacher_terms() if anchor.gated else None,
        )

    def calls(self, prices: Prices) -> Calls:
        from redif_ray.learning.policy import CHECKED_ROWS

        c, n = self.config, self.config.student.steps
        groups = self.rounds * self.groups
        rows, alone = groups * self.siblings, c.exploration.one_step
        shared = groups * (self.siblings - 1)  # states that siblings share, predicted once
        played = rows * n - shared * ((n + c.exploration.last_step) / 2 if alone else 1)
        explored = 1 if alone else n - 1 + c.exploration.last_step  # steps of a trajectory
        substeps = c.learner.anchor.substeps if c.learner.anchor.weight else 0
        if c.learner.trains_every_step:
            trained = played
        else:
            trained = groups if alone else rows * explored - shared
        several = c.learner.inner_epochs > 1 or c.learner.minibatch or c.pipeline.staleness
        if prices.replayed and several:  # predictions to which ratios refer
            replayed = trained
        else:
            checked, first = (min(CHECKED_ROWS, count) for count in (self.groups * self.siblings, self.groups))
            replayed = self.rounds * (first + (explored - 1) * checked)  # of the first step, siblings share the state
        return Calls(
            rollout=int(played * prices.student),
            reward=int(played * substeps * prices.teacher) + groups * self.teacher_images * prices.target,
            learner=int(prices.student * (trained * c.learner.inner_epochs * prices.backward + replayed)),
        )

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Turn rewards into advantages and take the optimiser steps of the policy gradient."""
        from redif_ray.learning import round_update as learn
        from redif_ray.learning.step import learning_rate

        config = self.config.learner
        relative, metrics = learn.relative_rewards(learning, round.metas)
        gate = learn.anchor_gate(learning, round.metas) if config.anchor.gated else None
        stds, lr = self.stds(learning.schedule, round.number), learning_rate(config, round.number - self.first_round)
        return metrics | learn.update_on_trajectories(learning, round, stds, config, lr, relative.values, gate)
