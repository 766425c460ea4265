"""A run's rounds one after the other in this process: the workers and the update are the real ones, Ray is left out."""

from __future__ import annotations

from typing import Any

import torch

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config
from redif_ray.learning.advantages import RunningStatistics
from redif_ray.models.student import get_weights, set_weights, trainable
from redif_ray.pipeline import build
from redif_ray.pipeline.plan import RoundPlan
from redif_ray.pipeline.reward import TeacherRewardWorker
from redif_ray.pipeline.rollout import StudentRolloutWorker
from redif_ray.pipeline.rounds import RoundUpdate
from redif_ray.types import Shard


class HereRolloutWorker(StudentRolloutWorker):
    """Takes its weights from this process instead of Ray's store."""

    def _load(self, weights: Any, key: str) -> int:
        set_weights(self.student, weights)
        self.loaded = (key, weights_sha256(weights))
        return int(key.rpartition("-")[2])


def train(config: Config) -> str:
    """Checksum of the weights after the last round."""
    torch.set_num_threads(1)
    teacher = build.teacher(config, "cpu")
    student = build.student(config, teacher)
    rollout, reward = HereRolloutWorker("rollout-0", config), TeacherRewardWorker("reward-0", config)
    update = RoundUpdate(config, student, teacher, RunningStatistics(), 0, 1, lambda _: None)
    plan = RoundPlan(config, build.conditions(config, teacher))
    versions, last_phase = [], None
    for round in range(plan.rounds):
        if plan.phase(round) != last_phase:
            last_phase = plan.phase(round)
            optimizer = torch.optim.AdamW(trainable(student).values(), weight_decay=config.learner.weight_decay)
        versions.append(get_weights(student))
        made_by = plan.version(round)
        played = {
            shard.index: play(rollout, reward, shard, versions[made_by], f"policy-{made_by}")
            for shard in plan.shards(round)
        }
        metas = [metas for metas, _ in played.values()]
        parts = {index: data for index, (_, data) in played.items()}
        metrics = update(round, plan.phase(round), metas, parts, optimizer, versions[made_by])
        rounding = 1e-5 if config.networks.precision == "float32" else 1e-4
        assert all(abs(v) < rounding for k, v in metrics.items() if "fresh_log_ratio" in k)
    return weights_sha256(get_weights(student))


def play(
    rollout: StudentRolloutWorker, reward: TeacherRewardWorker, shard: Shard, weights: Any, key: str
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Metas of a shard, and what was made of it."""
    if shard.phase == "warm_start":
        roll_meta, trajectories = rollout.rollout(shard, weights, key)
        jump_meta, scored = reward.jump(shard, trajectories)
        return (roll_meta, jump_meta), (trajectories, scored)
    target_meta, targets = reward.targets(shard)
    if shard.phase == "draft":
        return (target_meta,), (targets,)
    roll_meta, trajectories = rollout.rollout(shard, weights, key)
    score_meta, scored = reward.score(shard, trajectories, targets)
    return (target_meta, roll_meta, score_meta), (trajectories, scored)
