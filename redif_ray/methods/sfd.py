"""Few-step trajectory regression (SFD, arXiv 2409.19681): the student's step learns the teacher's jump.

The student samples its own deterministic trajectory. From each state on it the teacher takes a jump of several steps
over the same interval, and the student's step is regressed on this jump. Before another method this is the warm start;
alone it is the method `sfd`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redif_ray.methods.phase import Calls, Phase, Prices, Scoring
from redif_ray.types import Scored

if TYPE_CHECKING:
    from redif_ray.learning.round_update import Learning, Round


class WarmStart(Phase):
    """The rounds of the warm start."""

    name, title, teacher_images = "warm_start", "warm start", False
    optimises_reward = asks_images = reads_means = False
    asks_jumps = True

    @property
    def rounds(self) -> int:
        return self.config.warm_start.rounds

    @property
    def groups(self) -> int:
        return self.config.warm_start.groups

    @property
    def ema(self) -> float:
        return self.config.warm_start.ema

    def score(self, scoring: Scoring) -> Scored:
        """Ask for the teacher's jumps and for no reward."""
        return Scored(
            scoring.unit, {}, None, scoring.jumps(self.config.warm_start.substeps, self.config.warm_start.solver)
        )

    def calls(self, prices: Prices) -> Calls:
        rows, n = self.rounds * self.groups, self.config.student.steps
        own = rows * n * prices.student
        return Calls(
            rollout=own,
            reward=rows * n * self.config.warm_start.substeps * prices.teacher,
            learner=own * prices.backward,
        )

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Minimise the anchor alone: mean over (trajectory, step) pairs of loss(mean_k - jump_k)."""
        from redif_ray.learning.round_update import update_on_trajectories
        from redif_ray.learning.step import learning_rate
        from redif_ray.learning.update import regression_settings

        stds = self.stds(learning.schedule, round.number)
        settings = regression_settings(self.config.warm_start, self.config.learner)
        lr = learning_rate(self.config.warm_start, round.number - self.first_round)
        return update_on_trajectories(learning, round, stds, settings, lr)
