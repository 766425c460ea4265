"""DRaFT (Clark et al., arXiv 2309.17400): the reward's gradient, back-propagated through the student's own sampler.

DRaFT is the control arm of the policy gradient where every reward term is differentiable: the same student, schedule
and reward, but it uses the reward's gradient. The learner samples, decodes and scores by itself; the workers only make
the teacher's images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redif_ray.methods.phase import Calls, Prices, RewardedPhase

if TYPE_CHECKING:
    from redif_ray.learning.round_update import Learning, Round
    from redif_ray.rewards.base import Rewards


class Draft(RewardedPhase):
    """The rounds of DRaFT."""

    name, title, plays = "draft", "back-propagation", False
    learner_reads, scores_in_learner = ("targets",), True

    @property
    def groups(self) -> int:
        return self.config.draft.groups

    def check(self, rewards: Rewards) -> None:
        rewards.require_differentiable("method=draft")

    def calls(self, prices: Prices) -> Calls:
        rows, n, draft = self.rounds * self.groups, self.config.student.steps, self.config.draft
        last = draft.last_steps or n
        forward = n if draft.recompute else n - last  # of the last steps, beside that which `backward` has
        return Calls(
            reward=rows * self.teacher_images * prices.target,
            learner=int(rows * prices.student * (forward + last * prices.backward)),
        )

    @property
    def steps_held(self) -> int:
        return 1 if self.config.draft.recompute else self.config.draft.last_steps or self.config.student.steps

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Maximise the reward of the deterministic sample by its own gradient."""
        from redif_ray.learning.draft import DraftUpdater
        from redif_ray.learning.step import learning_rate

        units = [unit_metas[0].unit for unit_metas in round.metas]
        own = [(units[index], targets) for index, (targets,) in round.parts.items()]
        updater = DraftUpdater(
            learning.student,
            learning.optimizer,
            learning.schedule,
            self.config,
            learning.rewards(),
            all_reduce=learning.all_reduce,
            loss_scale=learning.loss_scale,
        )
        lr = learning_rate(self.config.learner, round.number - self.first_round)
        metrics = updater.run(own, total=sum(unit.rows for unit in units), round=round.number, lr=lr)
        return {"reward/mean": metrics.pop("reward")} | {f"update/{k}": v for k, v in metrics.items()}
