"""`python -m benchmarks.pipeline` in miniature: what it says of a run is looked at, how fast that was is not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.pipeline.cards import Counted, cards
from benchmarks.pipeline.first_step import first_step
from benchmarks.pipeline.overhead import overhead
from benchmarks.pipeline.overlap import overlap
from benchmarks.pipeline.publishing import publishing
from benchmarks.pipeline.scaling import scaling
from benchmarks.pipeline.simulated import Sizes
from benchmarks.pipeline.soak import KINDS, soak
from benchmarks.suite import Part, Suite
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest

QUIET = Console(file=io.StringIO())


@pytest.mark.slow
def test_the_first_step_is_predicted_once_a_group(tmp_path: Path) -> None:
    part = first_step(tmp_path, StopRequest(), QUIET, repeats=1, base="smoke")  # N = 2, 6 groups of 4
    assert [row[1:3] for row in part.rows] == [["30", "48"], ["12", "40"]]  # with the check, of 16 rows
    assert part.numbers["error"] < 1e-4


def test_a_report_keeps_what_was_measured_before(tmp_path: Path) -> None:
    def part(name: str, value: float) -> Part:
        return Part(name, name.capitalize(), ["", "s"], [["x", f"{value}"]], {"s": value}, ["A note."])

    suite = Suite("some", "Some", {name: lambda *_, n=name: part(n, 1.5) for name in ("one", "two")})
    suite.measure(["two"], tmp_path / "out", QUIET)
    path = suite.measure(["one"], tmp_path / "out", QUIET)
    text = path.read_text()
    assert text.index("## One") < text.index("## Two") and text.count("A note.") == 2 and "| x | 1.5 |" in text
    found = json.loads((tmp_path / "out" / "some.json").read_text())["parts"]
    assert found["two"]["numbers"] == {"s": 1.5} and "cores" in found["one"]["machine"]
    with pytest.raises(UserError, match="three is no part of the benchmark; expected some of one, two"):
        suite.measure(["three"], tmp_path / "out", QUIET)


@pytest.mark.long
@pytest.mark.cluster
def test_a_run_on_ray_beside_the_plain_loop(cluster: None, tmp_path: Path) -> None:
    part = overhead(tmp_path, StopRequest(), QUIET, rounds=4, groups=2, base="smoke", pinned=False)
    assert part.numbers["same_weights"] == 1
    numbers = part.numbers
    assert numbers["ratio"] == pytest.approx(numbers["ray_seconds"] / numbers["plain_seconds"])
    assert 0 < numbers["plain_cpu_seconds"] <= 1.1 * numbers["plain_seconds"]  # of one thread
    assert 0 < numbers["work_cpu_seconds"] < 3 * numbers["ray_seconds"]  # of three processes of one thread each


@pytest.mark.long
@pytest.mark.cluster
def test_simulated_workers_sleep_side_by_side(cluster: None, tmp_path: Path) -> None:
    sizes = Sizes("nothing", latent=(1, 4, 4), image=(1, 8, 8), steps=2, seconds=1.0)
    part = scaling(tmp_path, StopRequest(), QUIET, weak=(3,), strong=(1, 3), sizes=sizes, siblings=4, rounds=1)
    assert part.numbers["weak_3"] == part.numbers["strong_1"] == 1
    assert part.numbers["strong_3"] > 0.4  # one after the other it would be a third
    assert [row[1] for row in part.rows] == ["3", "3", "3"]


@pytest.mark.long
@pytest.mark.cluster
def test_a_shared_gpu_computes_for_one_process_at_a_time(cluster: None, tmp_path: Path) -> None:
    """Each of two GPUs has 1 s of work a group; in turns, weights of three processes move there and back besides."""
    counted = Counted("nothing", rollout=800, decode=800, teacher=800, update=800, weights=2.0)
    part = cards(tmp_path, StopRequest(), QUIET, models=[counted], numbers_of_gpus=[2], groups=2, rounds=2)
    numbers = part.numbers
    assert [row[2].partition(",")[0] for row in part.rows] == ["shared in turns", "shared", "shared"]
    assert {float(row[4]) for row in part.rows} == {2.0}
    assert 0.6 < numbers["nothing_2_shared"] < 1.05  # above 1 is what the first round made ahead
    assert numbers["nothing_2_turns"] < 2 / (2 + 6 * 0.2) * 1.02


@pytest.mark.long
@pytest.mark.cluster
def test_every_receiver_gets_the_weights(cluster: None, tmp_path: Path) -> None:
    part = publishing(tmp_path, StopRequest(), QUIET, megabytes=(1, 4), receivers=(1, 2))
    assert [row[:2] for row in part.rows] == [[size, count] for size in "14" for count in "12"]
    assert all(float(row[2]) <= float(row[3]) for row in part.rows)
    assert all(seconds > 0 for seconds in part.numbers.values())


@pytest.mark.long
@pytest.mark.cluster
def test_a_soak_reads_the_memory_of_every_process(cluster: None, tmp_path: Path) -> None:
    part = soak(tmp_path, StopRequest(), QUIET, rounds=60)
    assert [row[0] for row in part.rows] == list(KINDS.values())
    assert all(20 < float(row[1]) < 4000 for row in part.rows)
    assert 0 < part.numbers["work_ms"] < part.numbers["round_ms"]
    assert np.isfinite(part.numbers["slope_learner"])


@pytest.mark.long
@pytest.mark.cluster
def test_both_stalenesses_are_measured(cluster: None, tmp_path: Path) -> None:
    setting = ("rollout.groups=2", "rollout.unit_groups=2", "teacher.steps=2")
    part = overlap(tmp_path, StopRequest(), QUIET, rounds=4, base="smoke", setting=setting)
    assert [row[0] for row in part.rows] == ["0", "1"]
    assert part.numbers["ratio"] == pytest.approx(part.numbers["seconds_0"] / part.numbers["seconds_1"])
