"""Ctrl-C and SIGTERM: a checkpoint, one sentence, its own exit code, nothing left running; a resumed run ends alike."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
from smoke_runs import last_checkpoint, last_weights, plain_weights, rounds, smoke, start, train

from redif_ray.checkpoint import load_checkpoint
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
DEADLINE = 180


def test_a_round_ahead_sigterm_leaves_a_run_that_can_be_resumed(plain: str, root: Path) -> None:
    """With two workers of each kind, then with one: the weights of a plain loop that knows of no overlap."""
    folder, ahead = root / "ahead", ("pipeline.staleness=1", "checkpoint.every=5")
    process = start(root, "ahead", *ahead, "rollout.max_workers=2", "reward.max_workers=2")
    deadline = time.monotonic() + DEADLINE
    while rounds(folder) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 143, output
    assert "continue with --resume" in output and "Traceback" not in output
    assert psutil.wait_procs(family, timeout=20)[1] == []
    (checkpoint,) = (folder / "checkpoints").glob("round-*")
    round = int(checkpoint.name.removeprefix("round-"))
    assert 1 <= round < 4
    assert load_checkpoint(checkpoint)[1]["stale"] == [f"policy-{round - 1}"]  # of the round that is to come
    assert not (folder / "summary.json").exists() and (folder / "timeline.json").stat().st_size > 0
    config = smoke(root, "ahead", *ahead)
    train(config, resume=True)
    assert last_weights(folder) == plain_weights(config) != plain
    assert last_checkpoint(folder).name == "round-000004"
    assert [row.get("staleness") for row in read_rows(folder / "metrics.jsonl")] == [None, 0, 1, 1, 1]


def test_ctrl_c_before_training_starts(cluster: None, root: Path) -> None:
    folder = root / "early"
    process = start(root, "early")
    deadline = time.monotonic() + DEADLINE
    while not (folder / "config.yaml").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(3)  # Ray is starting, or the workers are
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 130, output
    assert "continue with --resume" in output and "Traceback" not in output
    assert not (folder / "summary.json").exists()
