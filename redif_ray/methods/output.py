"""The policy gradient at the output: the student's N deterministic steps are one action, explored around its image.

A group has one trajectory, and no sibling costs a network call: reward workers score images around the final latents
and estimate the gradient of the reward there, from scores alone. Terms that are differentiable give their own gradient
unless `output.sampled` asks for scores. The learner takes the gradient back through the student's steps, one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from redif_ray.methods.phase import Calls, Prices, RewardedPhase, Scoring
from redif_ray.types import Scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from redif_ray.config import Config
    from redif_ray.learning.round_update import Learning, Round


def sampled_terms(config: Config) -> list[str]:
    """List the reward terms with a weight whose gradient is estimated from scores, not computed."""
    from redif_ray.rewards.base import with_gradient

    exact = [] if config.output.sampled else with_gradient(config.reward.terms)
    return [name for name, weight in config.reward.weights.items() if weight and name not in exact]


class Output(RewardedPhase):
    """The rounds of the policy gradient at the output."""

    name, title, reads_means, reads_last = "output", "policy gradient at the output", False, True
    through_steps: ClassVar[bool] = True  # whether the gradient is taken back from step to step

    @property
    def groups(self) -> int:
        return self.config.output.groups

    @property
    def unit_groups(self) -> int:
        """Return the number of groups in a work unit, each of which takes many scores."""
        return self.config.rollout.unit_groups

    @property
    def teacher_images(self) -> bool:
        return super().teacher_images or self.encodes_in_worker

    @property
    def encodes_in_worker(self) -> bool:
        """Tell whether scores are taken along the way to the teacher's image."""
        return self.config.output.directions == "teacher" and bool(sampled_terms(self.config))

    @property
    def decodes(self) -> int:
        """Return the images that a reward worker decodes for a group: those around its final latent, and its own."""
        sampled = sampled_terms(self.config)
        return self.config.output.samples * bool(sampled) + (len(sampled) < len(self.config.reward.terms))

    @property
    def differentiates(self) -> int:
        """Return the images of a group through whose decoding a reward worker takes a gradient back."""
        sampled, weights = sampled_terms(self.config), self.config.reward.weights
        return int(any(weights[name] for name in weights if name not in sampled))

    def score(self, scoring: Scoring) -> Scored:
        """Ask for the reward terms around each final latent, and for their gradients there."""
        found = scoring.gradients()
        return Scored(scoring.unit, found.terms, None, None, gradients=found.gradients, spreads=found.spreads)

    def calls(self, prices: Prices) -> Calls:
        groups, n = self.rounds * self.groups, self.config.student.steps
        own = groups * n * prices.student
        return Calls(
            rollout=own, reward=groups * self.teacher_images * prices.target, learner=int(own * prices.backward)
        )

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Ascend the weighted reward by its gradients at the student's images, in one optimiser step."""
        from redif_ray.learning.output import OutputUpdater
        from redif_ray.learning.round_update import batch_of
        from redif_ray.learning.step import learning_rate

        batch, scored = batch_of(learning, round, self.stds(learning.schedule, round.number))
        total, found = self.ascent(learning, round, scored)
        lr = learning_rate(self.config.learner, round.number - self.first_round)
        updater = OutputUpdater.of(learning, through_steps=self.through_steps)
        metrics = updater.run(batch.latents, batch.encoded, total, total=batch.total_rows, round=round.number, lr=lr)
        return found | {f"update/{name}": value for name, value in metrics.items()}

    def ascent(self, learning: Learning, round: Round, scored: Sequence[Scored]) -> tuple[Tensor, dict[str, float]]:
        """Return the gradient of the weighted reward at this rank's images, [G', *latent], and the reward's metrics."""
        from redif_ray.learning.output import ascent
        from redif_ray.learning.round_update import joined
        from redif_ray.rewards.combine import weighted_sum

        reward, metas = self.config.reward, round.metas
        gradients = joined([each.gradients for each in scored], learning.student.device)
        total, spreads = ascent(gradients, joined([m[-1].spreads for m in metas]), reward.terms)
        terms = joined([m[-1].terms for m in metas])
        values = weighted_sum(terms, reward.weights)
        found = {"reward/mean": float(values.mean()), "reward/std": float(values.std(correction=0))}
        found |= {f"reward/{name}": float(of.mean()) for name, of in terms.items()}
        return total, found | {f"reward/{name}_spread": spread for name, spread in spreads.items()}
