"""The check by which fuzzers judge: what is bad must not pass."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from damage import ACTIONS, damaged, spoil
from image_files import make
from outcomes import ERROR, NOTICE, SUCCESS, Exceeded, Outcome, Tally, limited, mutated, of_call, of_command, paths_of

from redif_ray.errors import Notice, UserError

TREE = {"a": {"b": [1, 2.5, "text"], "c": None}, "d": True}


def raising(error: BaseException) -> object:
    raise error


def test_ends_are_told_apart() -> None:
    assert of_call(lambda: None).kind == SUCCESS
    assert of_call(lambda: raising(Notice("over"))).kind == NOTICE
    assert of_call(lambda: raising(UserError("x=1: expected 2"))) == Outcome(
        ERROR, "x=1: expected 2", pytest.approx(0, abs=1)
    )
    assert of_call(lambda: raising(ValueError("x"))).kind == "ValueError"
    missing = of_command("status", "no/such/run")
    assert missing.kind == ERROR and "no/such/run is not a run folder" in missing.text and missing.problem() is None


@pytest.mark.parametrize(
    "text", ["", "a\nb\nc", "Traceback (most recent call last):", "x" * 1001, "see https://errors.pydantic.dev/2.11"]
)
def test_an_error_that_is_not_clear_is_bad(text: str) -> None:
    tally = Tally("tests")
    tally.add("input", Outcome(ERROR, text, 0.0))
    with pytest.raises(AssertionError, match="1 inputs end badly:\ninput"):
        tally.check()


@pytest.mark.slow
def test_time_and_memory_are_limited() -> None:
    with pytest.raises(Exceeded, match="more than 0 s"), limited(seconds=0.15):
        time.sleep(1)
    with pytest.raises(Exceeded, match=r"0\.2 GB more memory"), limited(most=10**8):
        bytearray(b"x") * (2 * 10**8)


def test_a_mutation_is_new_and_leaves_the_tree() -> None:
    assert len(paths_of(TREE)) == 7
    results = [repr(mutated(TREE, random.Random(seed))) for seed in range(200)]
    assert len(set(results)) > 60
    assert results == [repr(mutated(TREE, random.Random(seed))) for seed in range(200)]
    assert TREE == {"a": {"b": [1, 2.5, "text"], "c": None}, "d": True}


def test_damage_is_new_and_repeats(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    assert len({damaged(data, random.Random(seed)) for seed in range(200)}) > 150
    assert damaged(data, random.Random(1)) == damaged(data, random.Random(1))
    done = set()
    for seed in range(100):
        folder = make(tmp_path / str(seed) / "x", {"a.txt": "a", "b/c.txt": "c", "b/d.txt": "d"})
        done.add(spoil(folder, random.Random(seed)).partition(" 'b/")[0].partition(" 'a")[0])
    assert done == set(ACTIONS)
