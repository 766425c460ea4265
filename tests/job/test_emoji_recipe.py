"""The shipped text-to-image recipe, shortened: captions by name, two CLIPs by name, guidance in the target alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from smoke_runs import initial_sha256, last_weights, summary

from redif_ray.config import load
from redif_ray.job.distill import distill

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.usefixtures("cluster")]


def test_a_short_run_learns_what_the_guided_teacher_draws(root: Path) -> None:
    config = load(
        "emoji_4step",
        [
            f"run.root={root}",
            "run.name=emoji",
            "tracking.uri=off",
            "rollout.max_workers=1",
            "reward.max_workers=1",
            "teacher.steps=6",
            "student.steps=2",
            "warm_start.rounds=3",
            "warm_start.groups=16",
            "warm_start.minibatch=16",
            "learner.rounds=1",
            "learner.threads=1",
            "rollout.groups=2",
            "rollout.siblings=4",
            "reward.calibration=8",
            "validation.groups=8",
            "guard.recall_floor=0",
            "evaluation.held_out=30",
            "evaluation.search=10",
            "evaluation.batch=10",
            "evaluation.bootstrap=40",
            "learner.ema=0",
        ],
    )
    folder = distill(config)
    found = summary(folder)
    assert last_weights(folder) != initial_sha256(config)
    assert (found["judge"], found["reference"]) == ("emoji_clip_b", "teacher")
    assert (found["arms"]["student"]["nfe"], found["arms"]["teacher_full"]["nfe"]) == (2, 12)
    assert found["arms"]["student"]["caption_cosine"] > found["arms"]["teacher_few"]["caption_cosine"] + 0.01
    assert all(0 < arm["caption_cosine"] < 1 for arm in found["arms"].values())
    assert len(json.loads((folder / "conditions.json").read_text())["held_out"]) == 200
    features = [path for path in (root / ".targets").rglob("*.safetensors") if path.parent.parent.name != "captions"]
    assert features  # of the teacher's images, by the encoder of two terms
