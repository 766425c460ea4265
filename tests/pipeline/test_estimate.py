from __future__ import annotations

import pytest

from redif_ray.config import load
from redif_ray.data.conditions import Conditions
from redif_ray.pipeline.estimate import estimate

CLASSES = Conditions(tuple(range(10)), tuple(range(10)))


def test_rounds_share_the_seconds_of_their_phase() -> None:
    found = estimate(load("smoke"), CLASSES)
    seconds = found.seconds
    assert found.round_seconds["warm_start"] == seconds["warm start"] + seconds["warm start, update"]
    assert 3 * found.round_seconds["policy"] == pytest.approx(seconds["rollout and rewards"] + seconds["update"])


def test_work_counted_by_hand() -> None:
    """Regression alone: 10 rounds of 48 rows, 4 steps, jumps of 3; the update is a forward and 1.9 for its backward."""
    found = estimate(load("fashion_mnist", ["method=sfd", "warm_start.rounds=10", "learner.threads=1"]), CLASSES)
    rows, call = 10 * 48 * 4, found.forward_ms / 1e3
    assert set(found.round_seconds) == {"warm_start"}
    assert found.seconds["warm start, update"] == pytest.approx(rows * 2.9 * call)
    assert found.seconds["update"] == found.seconds["rollout and rewards"] == 0


def test_guided_calls_count_twice() -> None:
    base = ["method=sfd", "warm_start.rounds=10", "learner.threads=1"]
    student = estimate(load("fashion_mnist", [*base, "student.guidance=2"]), CLASSES)
    teacher = estimate(load("fashion_mnist", [*base, "teacher.guidance=2"]), CLASSES)
    rows, jump = 10 * 48 * 4, 3
    call = student.forward_ms / 1e3
    assert student.seconds["warm start, update"] == pytest.approx(2 * rows * 2.9 * call)
    call = teacher.forward_ms / 1e3
    assert teacher.seconds["warm start, update"] == pytest.approx(rows * 2.9 * call)
    for found, own, jump_calls, target in ((student, 8, 1, 20), (teacher, 4, 2, 40)):
        warm, evaluation = 480 * (own + 4 * jump * jump_calls), 2000 * (4 * own + target) + 200 * (target + 8 * own)
        assert found.seconds["warm start"] / found.seconds["evaluation"] == pytest.approx(warm / evaluation)


def test_sixteen_bits_predict_a_round_once_more_where_it_makes_several_steps() -> None:
    base = ["learner.anchor.weight=0", "learner.threads=1"]
    half = [*base, "networks.precision=bfloat16"]
    states = 3 * 6 * (4 * 2 - 3)  # rounds of 6 groups of 4, 2 steps, of which siblings share the first
    for overrides, calls in (
        (half, 2.9), ([*base, "learner.minibatch=5"], 2.9), ([*half, "learner.minibatch=5"], 3.9),
        ([*half, "pipeline.staleness=1"], 3.9), ([*half, "learner.inner_epochs=2"], 2 * 2.9 + 1),
    ):  # fmt: skip
        found = estimate(load("smoke", overrides), CLASSES)
        assert found.seconds["update"] / found.forward_ms * 1e3 == pytest.approx(int(states * calls))
