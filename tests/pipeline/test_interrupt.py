"""Ctrl-C and SIGTERM: a checkpoint, one sentence, exit code 130, nothing left running; a resumed run ends alike."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
from smoke_runs import last_weights, rounds, smoke, start

from redif_ray.pipeline.distill import distill

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
DEADLINE = 180


def test_sigterm_leaves_a_run_that_can_be_resumed(first: Path, root: Path) -> None:
    folder = root / "interrupted"
    process = start(root, "interrupted")
    deadline = time.monotonic() + DEADLINE
    while rounds(folder) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 130, output
    assert "continue with --resume" in output and "Traceback" not in output
    assert psutil.wait_procs(family, timeout=20)[1] == []
    (checkpoint,) = (folder / "checkpoints").glob("round-*")
    assert 1 <= int(checkpoint.name.removeprefix("round-")) < 4
    assert not (folder / "summary.json").exists()
    distill(smoke(root, "interrupted", "rollout.workers=2"), resume=True)
    assert last_weights(folder) == last_weights(first)


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
