"""Distribution matching (DMD2, Yin et al., arXiv 2405.14867), which reads no image of the teacher.

A reward worker denoises the student's final latents, noised at a random level, with the teacher; the learner does the
same with a network that it trains on these latents. The difference of the two is the gradient at the student's image,
and the learner takes it back through the student's steps. A reward may stand beside it, as in DMDR (arXiv 2511.13649):
its gradient at the student's image, or the estimate of it from scores, is that of the method `output`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from redif_ray.methods.output import Output
from redif_ray.methods.phase import Calls, Phase, Prices, Scoring
from redif_ray.types import Scored

if TYPE_CHECKING:
    from redif_ray.config import Lora
    from redif_ray.learning.fake_score import FakeScore
    from redif_ray.learning.round_update import Learning, Round


class DistributionMatching(Output):
    """The rounds of distribution matching, with or without a reward."""

    name, title = "distribution_matching", "distribution matching"
    reward_chooses = False  # the reward is not what it raises, or not alone
    unit_groups = Phase.unit_groups

    @property
    def rewarded(self) -> bool:
        return self.config.distribution_matching.reward_weight > 0

    @property
    def groups(self) -> int:
        return self.config.distribution_matching.groups

    @property
    def teacher_images(self) -> bool:
        return self.rewarded and super().teacher_images

    @property
    def encodes_in_worker(self) -> bool:
        return self.rewarded and super().encodes_in_worker

    @property
    def decodes(self) -> int:
        return super().decodes if self.rewarded else 0

    @property
    def differentiates(self) -> int:
        return super().differentiates if self.rewarded else 0

    @property
    def second_network(self) -> Lora:
        return self.config.distribution_matching.lora

    def companion(self, learning: Learning) -> FakeScore:
        from redif_ray.learning.fake_score import FakeScore

        return FakeScore(learning)

    def score(self, scoring: Scoring) -> Scored:
        """Ask for what the teacher makes of the noised last latents, and for the reward around these latents."""
        denoised = scoring.denoised()
        found = super().score(scoring) if self.rewarded else Scored(scoring.unit, {}, None, None)
        return replace(found, denoised=denoised)

    def calls(self, prices: Prices) -> Calls:
        groups, n = self.rounds * self.groups, self.config.student.steps
        own, fake = (
            groups * n * prices.student,
            groups * (1 + self.config.distribution_matching.fake_steps * prices.backward),
        )
        taught = groups * (prices.teacher + self.teacher_images * prices.target)
        return Calls(rollout=own, reward=taught, learner=own * prices.backward + fake)

    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Train the fake score on the round, and then the student by teacher minus fake score, and by the reward."""
        import numpy as np
        import torch

        from redif_ray.learning.matching import direction, noised
        from redif_ray.learning.output import OutputUpdater
        from redif_ray.learning.round_update import batch_of
        from redif_ray.learning.rounding import as_sent
        from redif_ray.learning.step import learning_rate

        started, config, student, fake = time.perf_counter(), learning.config, learning.student, learning.companion
        batch, scored = batch_of(learning, round, self.stds(learning.schedule, round.number))
        x, groups = as_sent(batch.latents[-1], config), [g for each in scored for g in each.unit.groups]
        found = fake.run(x, batch.encoded, groups, total=batch.total_rows, round=round.number)
        x_t, level = noised(x, groups, student.process, seed=config.run.seed, round=round.number, draw=0)
        teacher = torch.from_numpy(np.concatenate([each.denoised for each in scored])).to(x)
        total = direction(x, teacher, fake.denoised(x_t, level, batch.encoded))
        rewards: dict[str, float] = {}
        if self.rewarded:
            raised, rewards = self.ascent(learning, round, scored)
            total += raised * self.config.distribution_matching.reward_weight / x[0].numel()
        updater = OutputUpdater.of(learning)
        lr = learning_rate(config.learner, round.number - self.first_round)
        metrics = updater.run(batch.latents, batch.encoded, total, total=batch.total_rows, round=round.number, lr=lr)
        beside = batch.total_rows / student.calls_per_step(config.student.guidance)  # in guided calls, as the others
        steps = self.config.distribution_matching.fake_steps
        metrics["network_calls_forward"] += (1 + steps) * beside
        metrics["network_calls_backward"] += steps * beside
        metrics["seconds"] = time.perf_counter() - started
        return (
            rewards | {f"update/{k}": v for k, v in metrics.items()} | {f"fake_score/{k}": v for k, v in found.items()}
        )
