"""One round on one rank: from what the workers sent to an optimiser step or several, for each phase of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_ray.baselines.draft import DraftUpdater
from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config
from redif_ray.learner.ranks import Ranks
from redif_ray.learning.advantages import Advantages, RunningStatistics, advantages
from redif_ray.learning.batch import RoundBatch, assemble
from redif_ray.learning.exploration import phase_stds, shared_steps
from redif_ray.learning.rounding import ratio_tolerance, rounds_apart
from redif_ray.learning.update import Updater, learning_rate, warm_start_learner
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.student import get_weights, with_weights
from redif_ray.planning import factory
from redif_ray.rewards.combine import Combined, combine, weighted_sum
from redif_ray.types import Meta, Phase

LOSS_SCALES = {"float16": 2.0**16}  # gradients of an image's mean are below 6e-8, the least that float16 holds
Metas = Sequence[Sequence[Meta]]  # those of each shard, in order of shards


class RoundUpdate:
    """Callable on each round; all of its state is in the student, the optimiser it is given and `running`.

    teacher: may be None where no regulariser pulls towards it.
    """

    def __init__(
        self,
        config: Config,
        student: DiffusionModel,
        teacher: DiffusionModel | None,
        running: RunningStatistics,
        ranks: Ranks,
    ) -> None:
        self.config, self.student, self.teacher, self.running = config, student, teacher, running
        self.ranks = ranks
        self.schedule = factory.student_schedule(student, config.student)
        self.warm_rounds = config.warm_start.rounds

    def __call__(
        self,
        round: int,
        phase: Phase,
        metas: Metas,
        parts: Mapping[int, Sequence[Any]],
        optimizer: torch.optim.Optimizer,
        behaviour: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """metas: of every shard of the round. parts: what the workers made of this rank's shards, by shard index.

        behaviour: the weights that rolled out the round; None: the student's own.
        """
        if phase == "draft":
            return self._draft(round, metas, parts, optimizer)
        stds = phase_stds(self.schedule, self.config, phase, round)
        values, gate, metrics = None, None, {}
        if phase == "policy":
            combined = combine(_joined(metas, "terms"), self.config.reward.terms, siblings=self.config.rollout.siblings)
            relative = self._advantages(metas, combined)
            values, metrics = relative.values, reward_metrics(metas, combined, relative)
            gate = self._gate(metas) if self.config.learner.anchor.gated else None
        batch = assemble(
            [shard_metas[0].shard for shard_metas in metas],
            [(trajectories, scored) for trajectories, scored in parts.values()],
            weights_sha256=weights_sha256(behaviour or get_weights(self.student)),
            encode=self.student.encode,
            advantages=values,
            gate=gate,
            shared=shared_steps(self.config, stds),
            device=next(self.student.network.parameters()).device,
        )
        found = self._update(round, phase, stds, batch, optimizer, behaviour)
        return metrics | {f"update/{k}": v for k, v in found.items()}

    def _update(
        self, round: int, phase: Phase, stds: Tensor, batch: RoundBatch, optimizer: torch.optim.Optimizer,
        behaviour: Mapping[str, Tensor] | None,
    ) -> dict[str, float]:
        config, guidance = self.config, self.config.student.guidance
        if phase == "warm_start":
            learner, lr = warm_start_learner(config.warm_start, config.learner), config.warm_start.lr
        else:
            learner, lr = config.learner, learning_rate(config.learner, round - self.warm_rounds)
        updater = Updater(
            partial(self.student.predict, guidance=guidance),
            optimizer,
            self.schedule,
            stds,
            learner,
            ratio_tolerance=ratio_tolerance(config),
            reference=partial(self.teacher.predict, guidance=guidance) if self.teacher is not None else None,
            rank=self.ranks.rank,
            world=self.ranks.world,
            all_reduce=self.ranks.all_reduce,
            sharded=config.learner.shard and self.ranks.world > 1,
            loss_scale=LOSS_SCALES.get(config.networks.precision, 1.0),
            rounds_apart=rounds_apart(config),
        )
        block = with_weights(self.student, behaviour) if behaviour else None
        return updater.run(batch, round=round, seed=config.run.seed, lr=lr, behaviour=block)

    def _advantages(self, metas: Metas, combined: Combined) -> Advantages:
        c = self.config
        return advantages(
            combined.rewards.view(-1, c.rollout.siblings),
            c.learner.advantage,
            c.learner.advantage_clip,
            pair_baseline=c.exploration.antithetic,
            running=self.running,
            keys=[condition for shard_metas in metas for condition in shard_metas[0].shard.conditions],
        )

    def _gate(self, metas: Metas) -> Tensor:
        """1 where the teacher's own image scores higher than the student's (RATS)."""
        own, teachers = _joined(metas, "terms"), _joined(metas, "teacher_terms")
        weights = self.config.reward.weights
        return (weighted_sum(teachers, weights) > weighted_sum(own, weights)).float()

    def _draft(
        self, round: int, metas: Metas, parts: Mapping[int, Sequence[Any]], optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        shards = [shard_metas[0].shard for shard_metas in metas]
        mine = [(shards[index], targets) for index, (targets,) in parts.items()]
        updater = DraftUpdater(
            self.student,
            optimizer,
            self.schedule,
            self.config,
            factory.rewards(self.config, self.student, str(next(self.student.network.parameters()).device)),
            all_reduce=self.ranks.all_reduce,
            loss_scale=LOSS_SCALES.get(self.config.networks.precision, 1.0),
        )
        lr = learning_rate(self.config.learner, round - self.warm_rounds)
        found = updater.run(mine, total=sum(s.rows for s in shards), round=round, lr=lr)
        return {"reward/mean": found.pop("reward")} | {f"update/{k}": v for k, v in found.items()}


def _joined(metas: Metas, field: str) -> dict[str, Tensor]:
    """A field of arrays by term, over the rows of the whole round in order of shards."""
    parts: list[dict[str, np.ndarray]] = [getattr(shard_metas[-1], field) for shard_metas in metas]
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def reward_metrics(metas: Metas, combined: Combined, relative: Advantages) -> dict[str, float]:
    raw = _joined(metas, "terms")
    found = {"reward/mean": float(combined.rewards.mean()), "reward/std": float(combined.rewards.std(correction=0))}
    found |= {f"reward/{name}": float(value.mean()) for name, value in raw.items()}
    found |= {f"reward/{name}_spread": spread for name, spread in combined.spreads.items()}
    return found | {"advantage/std": relative.std, "advantage/dead_group_fraction": relative.dead_group_fraction}
