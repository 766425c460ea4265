"""Every named choice runs two real rounds with the shipped teacher and moves the weights its own way.

The workers and the learner's update are the real ones, called in this process; only Ray is left out.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import LEARNED, Learner, Networks, Regulariser, load
from redif_ray.learning.advantages import RunningStatistics
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student, set_weights, trainable
from redif_ray.pipeline import build
from redif_ray.pipeline.plan import RoundPlan
from redif_ray.pipeline.reward import TeacherRewardWorker
from redif_ray.pipeline.rollout import StudentRolloutWorker
from redif_ray.pipeline.rounds import RoundUpdate
from redif_ray.rewards.base import TERMS

pytestmark = pytest.mark.slow


class HereRolloutWorker(StudentRolloutWorker):
    """Takes its weights from this process instead of Ray's store."""

    def _load(self, weights: Any, key: str) -> int:
        set_weights(self.student, weights)
        self.loaded = (key, weights_sha256(weights))
        return int(key.rpartition("-")[2])


BASE = [
    "teacher.steps=2", "student.steps=2", "exploration.eta=0.5",
    "rollout.groups=2", "rollout.siblings=4", "rollout.shard_groups=1",
    "learner.rounds=2", "learner.lr=1e-4", "learner.minibatch=4", "learner.clip=0.02", "learner.inner_epochs=2",
]


@lru_cache
def trained(*overrides: str) -> str:
    """Checksum of the weights after two rounds."""
    config = load(None, [*BASE, f"run.root={trained.root}", *overrides])
    teacher = build.teacher(config, "cpu")
    student = build.student(config, teacher)
    rollout, reward = HereRolloutWorker("rollout-0", config), TeacherRewardWorker("reward-0", config)
    update = RoundUpdate(config, student, teacher, RunningStatistics(), 0, 1, lambda _: None)
    optimizer = torch.optim.AdamW(trainable(student).values(), lr=config.learner.lr)
    plan = RoundPlan(config, build.conditions(config, teacher))
    for round in range(plan.rounds):
        metas, parts = [], {}
        for shard in plan.shards(round):
            if shard.phase == "warm_start":
                roll_meta, trajectories = rollout.rollout(shard, get_weights(student), f"policy-{round}")
                jump_meta, scored = reward.jump(shard, trajectories)
                metas.append((roll_meta, jump_meta))
                parts[shard.index] = (trajectories, scored)
                continue
            target_meta, targets = reward.targets(shard)
            if shard.phase == "draft":
                metas.append((target_meta,))
                parts[shard.index] = (targets,)
                continue
            roll_meta, trajectories = rollout.rollout(shard, get_weights(student), f"policy-{round}")
            score_meta, scored = reward.score(shard, trajectories, targets)
            metas.append((target_meta, roll_meta, score_meta))
            parts[shard.index] = (trajectories, scored)
        metrics = update(round, plan.phase(round), metas, parts, optimizer)
        rounding = 1e-5 if config.networks.precision == "float32" else 1e-4
        assert all(abs(v) < rounding for k, v in metrics.items() if "fresh_log_ratio" in k)
    return weights_sha256(get_weights(student))


@pytest.fixture(autouse=True)
def _root(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not hasattr(trained, "root"):
        trained.root = tmp_path_factory.mktemp("targets")  # type: ignore[attr-defined]


def initial() -> str:
    return weights_sha256(get_weights(make_student(load_model("fashion-mnist"), load(None).student.lora)))


def all_differ(choices: list[tuple[str, ...]]) -> None:
    hashes = {choice: trained(*choice) for choice in choices}
    assert len(set(hashes.values()) | {initial()}) == len(choices) + 1, hashes


def test_advantages() -> None:
    kinds = get_args(Learner.model_fields["advantage"].annotation)
    filled = ("rollout.siblings=8", "conditions.classes=[0]")  # 16 rewards of one condition a round: the buffer is full
    all_differ([(f"learner.advantage={kind}", *filled) for kind in kinds])


def test_losses_and_step_weights() -> None:
    kinds = get_args(Learner.model_fields["loss"].annotation)
    weighted = ("learner.step_weight=std", "exploration.last_step=true")
    all_differ([(f"learner.loss={kind}",) for kind in kinds] + [weighted])


def test_regularisers() -> None:
    kinds = get_args(Regulariser.model_fields["kind"].annotation)
    all_differ([(f"learner.regulariser.kind={kind}", "learner.regulariser.weight=100") for kind in kinds])


def test_anchor_guided_groups_and_exploration() -> None:
    all_differ([
        ("learner.anchor.weight=1.0",), ("learner.anchor.weight=1.0", "learner.anchor.loss=l1"), ("rollout.guided=2",),
        ("exploration.kind=cps",), ("exploration.antithetic=false",), ("exploration.last_step=true",),
    ])


def test_methods() -> None:
    all_differ([
        (), ("method=sfd", "warm_start.rounds=2", "warm_start.groups=4"),
        ("method=draft", "draft.groups=4"), ("method=draft", "draft.groups=4", "draft.last_steps=1"),
    ])


@pytest.mark.parametrize("lora", ["student.lora.rank=0", "student.lora.rank=2"])
def test_precisions(lora: str) -> None:
    """The ratio of a fresh round is 1 in each of them."""
    kinds = get_args(Networks.model_fields["precision"].annotation)
    all_differ([(f"networks.precision={kind}", lora) for kind in kinds])


def test_rewards(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(student, teacher, conditions):\n    return -student.mean((1, 2, 3))\n")
    own = f"reward.terms={{mine: {{options: {{callable: '{tmp_path}/mine.py:score'}}}}}}"
    fixed = [name for name in TERMS if name != LEARNED]
    complete = [name for name in fixed if "batch" not in {field.name for field in fields(TERMS[name])}]
    assert len(complete) >= 9  # the others need a network from elsewhere
    all_differ([(f"reward.terms={{{name}: {{}}}}",) for name in complete] + [(own,)])


def test_lora_trains_its_adapters_alone() -> None:
    assert trained("student.lora.rank=2") != trained("student.lora.rank=2", "learner.lr=2e-4")
