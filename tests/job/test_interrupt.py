"""Ctrl-C and SIGTERM: a checkpoint, one sentence, its own exit code, nothing left running; resumed, it ends alike."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import ray
import requests
from several_nodes import Run
from smoke_runs import last_checkpoint, last_weights, plain_weights, rounds, smoke, start
from test_kills import OTHERS, kill_in_mid_round, lost

from redif_ray.checkpoint import load_checkpoint
from redif_ray.runs.jsonl import read_rows

pytestmark = pytest.mark.cluster
DEADLINE = 180
GAUGES = {"round", "rounds_per_second", "groups_per_second", "staleness", "stage_seconds", "queue", "in_flight"}
STAGES = {"round", "gather", "fetch", "rollout", "targets", "score", "anchor", "update"}
AHEAD = ("pipeline.staleness=1", "checkpoint.every=5", "learner.rounds=6", "validation.every=7")


@pytest.fixture(scope="module")
def stopped(root: Path) -> Path:
    """A run a round ahead, with two workers of each kind, whose process group got SIGTERM, as batch systems send it."""
    folder = root / "ahead"
    process = start(root, "ahead", *AHEAD, "rollout.max_workers=2", "reward.max_workers=2")
    deadline = time.monotonic() + DEADLINE
    while rounds(folder) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 143, output
    assert "continue with --resume" in output and "Traceback" not in output and "retries" not in output
    assert psutil.wait_procs(family, timeout=20)[1] == []
    return folder


def last_round(folder: Path) -> int:
    return int(last_checkpoint(folder).name.removeprefix("round-"))


def test_sigterm_leaves_a_run_that_can_be_resumed(stopped: Path) -> None:
    (checkpoint,) = (stopped / "checkpoints").glob("round-*")
    round = last_round(stopped)
    assert 1 <= round < 4
    assert load_checkpoint(checkpoint)[1]["stale"] == [f"policy-{round - 1}"]  # of the round that is to come
    assert not (stopped / "summary.json").exists() and (stopped / "timeline.json").stat().st_size > 0


def scraped(run: str) -> set[str]:
    """The names and stages of a run's metrics where Prometheus reads them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found = set[str]()
    for line in requests.get(url, timeout=30).text.splitlines():
        if line.startswith("ray_redif_") and f'run="{run}"' in line:
            found.add(line.partition("{")[0].removeprefix("ray_redif_"))
            found.update(re.findall(r'stage="(\w+)"', line))
    return found


def test_resumed_with_fewer_workers_it_loses_each_of_its_parts_and_ends_alike(
    cluster: None, stopped: Path, root: Path
) -> None:
    """Prometheus sees the run, which ends with the weights of a plain loop: that knows of no overlap, stop or loss."""
    config, first = smoke(root, "ahead", *AHEAD), last_round(stopped)
    run = Run(config, until=1000, resume=True)
    run.wait(lambda: rounds(stopped) > first)
    kill_in_mid_round("ray::RolloutActor", "ray::RewardActor", seen=lambda: scraped("ahead") >= GAUGES | STAGES)
    run.wait(lambda: {"rollout", "reward"} <= lost(stopped) and rounds(stopped) > first + 1)
    kill_in_mid_round("ray::Coordinator", "ray::WeightStore", "ray::MetricsWriter")
    run.wait(lambda: rounds(stopped) > first + 2)
    kill_in_mid_round("ray::RayTrainWorker")
    run.wait()
    counts = Counter(row["lost"] for row in read_rows(stopped / "lost.jsonl"))
    assert {"rollout", "reward"} <= set(counts) and all(counts[what] == 1 for what in OTHERS)
    assert last_weights(stopped) == plain_weights(config)
    assert last_round(stopped) == 7
    rows = read_rows(stopped / "metrics.jsonl")
    assert [row.get("staleness") for row in rows] == [None, 0, *[1] * 6]
    assert not any("seconds/offload" in row for row in rows)  # its workers and learner take no turns


@pytest.mark.long
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
