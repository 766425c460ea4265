"""The algorithm in one process, without Ray: read this file first.

A round goes through three parts, which are the same objects that a run on Ray uses:

    StudentRolloutWorker.rollout   plays the student's denoising trajectories    workers/rollout.py
    TeacherRewardWorker.score      makes the teacher's images and the rewards    workers/reward.py
    Phase.update                   advantages, loss, optimiser steps             methods/redif.py

On the CPU the weights after the last round are, bit for bit, those of the same run on Ray, with the same
`learner.microbatch`, which a run on Ray chooses where it is not given. A run on Ray adds the distribution of work
(coordinator/, workers/actors.py), recovery from losses (faults.py), and checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config
from redif_ray.learner.ranks import Ranks
from redif_ray.learner.trainee import Trainee
from redif_ray.learning.round_update import Round
from redif_ray.methods import Phase
from redif_ray.models.student import get_weights, set_weights
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.types import WorkUnit
from redif_ray.weights.store import policy_key, version
from redif_ray.workers.reward import TeacherRewardWorker
from redif_ray.workers.rollout import StudentRolloutWorker


class HereRolloutWorker(StudentRolloutWorker):
    """A rollout worker that takes its weights from this process instead of Ray's store."""

    def _load(self, weights: Any, key: str) -> int:
        set_weights(self.student, weights)
        self.loaded = (key, weights_sha256(weights))
        return version(key)


class PlainLoop:
    """A run without a learned reward, in this process."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.learner.threads)
        teacher = factory.frozen(config, factory.device(config.learner.gpus))
        self.config, self.student = config, factory.student(config, teacher)
        self.rollout, self.reward = HereRolloutWorker("rollout-0", config), TeacherRewardWorker("reward-0", config)
        self.trainee = Trainee(config, self.student, teacher, Ranks(0, 1))
        self.plan = RoundPlan(config, factory.conditions(config, teacher))
        self.versions: dict[int, dict[str, Tensor]] = {}
        self.phase: Phase | None = None

    def round(self, round: int) -> dict[str, float]:
        """Play, score and learn from one round; return the update's metrics. Call it for rounds 0, 1, ... in order."""
        phase = self.plan.phase(round)
        if phase is not self.phase:
            self.phase = phase
            self.trainee.start(phase)
        made_by = self.plan.version(round)
        self.versions[round] = get_weights(self.student)
        self.versions = {after: weights for after, weights in self.versions.items() if after >= made_by}
        weights = self.versions[made_by]
        played = {s.index: self.play(s, weights, policy_key(made_by)) for s in self.plan.units(round)}
        metas = [metas for metas, _ in played.values()]
        parts = {index: data for index, (_, data) in played.items()}
        behaviour = None if made_by == round else weights
        return self.trainee.update(Round(round, metas, parts, behaviour))

    def checksum(self) -> str:
        """Return the checksum of the student's weights."""
        return weights_sha256(get_weights(self.student))

    def play(self, unit: WorkUnit, weights: Any, key: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Compute one work unit; return its metas, and those of its products that the learner reads."""
        phase = self.plan.named(unit.phase)
        ask, block = self.reward.sent_targets, self.plan.sampled_with(unit)
        meta, targets = ask(unit, block) if phase.teacher_images else self.reward.encode(unit)
        metas, made = [meta], dict[str, Any](targets=targets)
        if phase.plays:
            roll_meta, made["trajectories"], final = self.rollout.rollout(unit, weights, key)
            score_meta, made["scored"] = self.reward.score(unit, final, made["trajectories"], targets)
            metas += [roll_meta, score_meta]
        return tuple(metas), tuple(made[name] for name in phase.learner_reads)
