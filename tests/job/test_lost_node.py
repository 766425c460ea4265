from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from smoke_runs import last_weights, plain_weights, smoke, summary

from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def test_a_run_that_loses_a_node_with_its_workers_ends_alike(root: Path) -> None:
    script = Path(__file__).with_name("lost_node.py")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, script, str(root)], capture_output=True, text=True, env=environment)
    folder = root / "lost-node"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a node is gone" in done.stdout
    assert {row["lost"] for row in read_rows(folder / "lost.jsonl")} & {"rollout", "reward"}
    assert summary(folder)["notes"]["lost"]
    expected = plain_weights(smoke(root, "whole", "learner.rounds=12", "validation.every=12"))
    assert last_weights(folder) == expected
