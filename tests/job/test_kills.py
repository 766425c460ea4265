"""SIGKILL of a run and of its parts: resumed, or by itself, it ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from several_nodes import Run
from smoke_runs import last_weights, plain_weights, rounds, smoke, start, summary

from redif_ray.job.distill import distill
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
DEADLINE = 300
OTHERS = ("coordinator", "weight store", "metrics writer", "learner")


def run_until(point: Callable[[], bool], root: Path, name: str, *options: str) -> None:
    """A run all of whose processes, Ray's too, get SIGKILL at `point`."""
    process = start(root, name, *options)
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


@pytest.mark.long
def test_a_run_killed_in_the_middle_of_a_checkpoint(plain: str, root: Path) -> None:
    folder = root / "killed"

    def partial() -> list[Path]:
        return list((folder / "checkpoints").glob(".round-*.partial"))

    run_until(lambda: bool(partial()), root, "killed")
    assert partial(), "the checkpoint was complete before the kill"
    assert not list((folder / "checkpoints").glob("round-*"))
    distill(smoke(root, "killed"), resume=True)
    assert last_weights(folder) == plain
    assert [row["round"] for row in read_rows(folder / "metrics.jsonl")] == [-1, 0, 1, 2, 3]
    assert not partial()


def actors(part: str) -> list[psutil.Process]:
    """The processes of the actors, on this process's cluster, whose class is called like `part`."""
    return [each for each in psutil.Process().children(recursive=True) if has_name(each, part)]


def lost(folder: Path) -> set[str]:
    return {row["lost"] for row in read_rows(folder / "lost.jsonl")}


def until(point: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not point():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def kill_in_mid_round(*parts: str, seen: Callable[[], bool] = lambda: True) -> None:
    """Workers that stand still, until all is `seen`, let no round end: what is asked for meanwhile is lost in it."""
    until(lambda: bool(actors("ray::RolloutActor") and actors("ray::RewardActor")))  # those killed before are back
    (rollout,), (reward,) = actors("ray::RolloutActor"), actors("ray::RewardActor")
    for worker in (rollout, reward):
        worker.suspend()
    time.sleep(1)
    until(seen)
    for part in parts:
        (victim,) = actors(part)
        victim.kill()
    for worker in (rollout, reward):
        with suppress(psutil.NoSuchProcess):
            worker.resume()


@pytest.mark.long
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_that_loses_its_parts_goes_on(plain: str, root: Path, staleness: int) -> None:
    config = smoke(root, f"losing-{staleness}", f"pipeline.staleness={staleness}")
    folder, run = root / config.run.name, Run(config)
    run.wait(lambda: rounds(folder) > 0)
    kill_in_mid_round("ray::RolloutActor", "ray::RewardActor")
    run.wait(lambda: {"rollout", "reward"} <= lost(folder) and rounds(folder) > 1)
    kill_in_mid_round("ray::Coordinator", "ray::WeightStore", "ray::MetricsWriter")
    run.wait(lambda: rounds(folder) > 2)
    kill_in_mid_round("ray::TrainController" if staleness else "ray::RayTrainWorker")
    run.wait()
    assert last_weights(folder) == (plain_weights(config) if staleness else plain)
    assert [row["round"] for row in read_rows(folder / "metrics.jsonl")] == [-1, 0, 1, 2, 3]
    counts = summary(folder)["notes"]["lost"]
    assert {"rollout", "reward"} <= set(counts) and all(counts[what] == 1 for what in OTHERS)
