"""SIGKILL of a run at two points; resumed, it ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from smoke_runs import last_weights, rounds, smoke, start

from redif_ray.pipeline.distill import distill
from redif_ray.pipeline.metrics import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
DEADLINE = 180


def run_until(point: Callable[[], bool], root: Path, *options: str) -> None:
    """A run all of whose processes, Ray's too, get SIGKILL at `point`."""
    process = start(root, "killed", *options)
    watched, deadline = psutil.Process(process.pid), time.monotonic() + DEADLINE
    family: list[psutil.Process] = []
    complete = False
    while not point():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the run ended before the point: {process.communicate()[0].decode()}")
        if not complete:
            family = watched.children(recursive=True)
            complete = any(has_name(each, "TrainWorker") for each in family)
        time.sleep(0.001)
    for each in [*reversed(family), watched]:  # the learner, which started last, first
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def has_name(process: psutil.Process, part: str) -> bool:
    try:
        return part in process.name()
    except psutil.NoSuchProcess:  # it ended just now
        return False


def test_a_run_killed_twice_ends_alike(first: Path, root: Path) -> None:
    """In the middle of writing its first checkpoint, and between two."""
    folder = root / "killed"

    def partial() -> list[Path]:
        return list((folder / "checkpoints").glob(".round-*.partial"))

    run_until(lambda: bool(partial()), root)
    assert partial(), "the checkpoint was complete before the kill"
    assert not list((folder / "checkpoints").glob("round-*"))
    run_until(lambda: rounds(folder) >= 3, root, "--resume")
    assert not (folder / "summary.json").exists()
    distill(smoke(root, "killed"), resume=True)
    assert last_weights(folder) == last_weights(first)
    assert [row["round"] for row in read_rows(folder / "metrics.jsonl")] == [-1, 0, 1, 2, 3]
    assert not partial()
