from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from smoke_runs import last_weights, plain_weights, smoke, summary

from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def test_a_run_that_grows_and_shrinks_ends_alike(root: Path) -> None:
    script = Path(__file__).with_name("grown_run.py")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, script, str(root)], capture_output=True, text=True, env=environment)
    folder = root / "grown"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before the node: []" in done.stdout and "with the node: ['reward-1', 'rollout-1']" in done.stdout
    assert "the node is gone" in done.stdout
    assert {row["lost"] for row in read_rows(folder / "lost.jsonl")} <= {"rollout", "reward", "unit"}
    workers = summary(folder)["notes"]["workers"]
    assert set(workers) == {"rollout-0", "rollout-1", "reward-0", "reward-1"}
    assert all(0 < work["busy"] < 1 for work in workers.values())
    assert last_weights(folder) == plain_weights(smoke(root, "whole", "learner.rounds=60", "validation.every=60"))
