"""The profile of a round counts time for what is on the stack."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.cpu_profile import KINDS, Looks, _frames, kind_of, processes, profile, stack_of
from redif_ray.config import Config, load
from redif_ray.interrupt import StopRequest
from redif_ray.loop import PlainLoop
from redif_ray.models import protocol


def smoke(root: Path) -> Config:
    found: Config = load("smoke", [f"run.root={root}", "run.name=run"])
    return found


@pytest.mark.slow
def test_a_part_has_the_looks_of_its_own_calls() -> None:
    looks = Looks()
    slow, slower = looks.within("slow", time.sleep), looks.within("slower", time.sleep)
    with looks.looking():
        began = time.perf_counter()
        slow(0.1)
        took = time.perf_counter() - began
        time.sleep(0.1)
        slower(0.3)
    assert {*looks.counts} == {"slow", "slower"} == {*looks.seconds}
    assert looks.counts["slower"].total() > 1.5 * looks.counts["slow"].total() > 0
    assert 0.1 <= looks.seconds["slow"] == pytest.approx(took, abs=0.05)


@pytest.mark.slow
def test_a_network_call_is_told_from_the_project_s_own_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    loop = PlainLoop(smoke(tmp_path))
    network = loop.student.network
    forward = network.forward

    def seen(*args: object, **options: object) -> object:
        found.append(kind_of(stack_of(sys._getframe())))
        return forward(*args, **options)

    monkeypatch.setattr(network, "forward", seen)
    loop.trainee.start(loop.plan.phase(0))
    loop.round(0)
    assert {*found} == {"network"} and kind_of(stack_of(sys._getframe())).startswith("outside, test_cpu_profile.py:")


@pytest.mark.slow
def test_each_part_of_a_round_is_looked_at(tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO())
    part = profile(tmp_path, StopRequest(), quiet, config=smoke(tmp_path), rounds=(0, 2))
    assert {row[0] for row in part.rows} >= {"teacher's images", "update"}
    assert all(0 <= part.numbers[f"{row[0]}_other"] <= 1 and len(row) == 4 + len(KINDS) for row in part.rows)


@pytest.mark.cluster
@pytest.mark.long
def test_each_process_of_a_run_on_ray_is_looked_at(tmp_path: Path) -> None:
    given = [f"run.root={tmp_path}", "run.name=processes", "tracking.uri=off", "learner.rounds=60"]
    part = processes(tmp_path, StopRequest(), Console(file=io.StringIO()), recipe="smoke", given=given)
    assert [row[0] for row in part.rows] == ["rollout", "reward", "learner"]
    assert part.numbers["learner_looks"] > 0 and part.numbers["learner_other"] < 0.95


def test_a_line_of_py_spy_is_a_stack() -> None:
    package = Path(protocol.__file__)
    line = f"run (/usr/lib/threading.py:9);DiffusionModel.call_network ({package}:4);conv (torch/nn/conv.py:1)"
    assert kind_of(_frames(line)) == "network"
    assert (
        kind_of(_frames("run (/usr/lib/threading.py:9);wait (/usr/lib/threading.py:3)")) == "outside, threading.py:wait"
    )
