"""The time that a run says is left counts all that is to come, on a terminal and in a log."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from redif_ray.job import progress as module
from redif_ray.job import steps
from redif_ray.job.progress import END, EVALUATION, TRAINING, Progress, stages
from redif_ray.job.steps import Step, Steps


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(steps, "time", clock)
    return clock


def log() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200, force_terminal=False), text


def whole(console: Console, **options: Any) -> Progress:
    return Progress(console, stages({"evaluation": 50.0}, 100.0, whole=True), **options)


def test_what_nobody_can_time_is_told_without_a_time(clock: Clock) -> None:
    console, text = log()
    progress = whole(console)
    progress.tell("comparing", line=True)
    clock.now += 29
    progress.tell("one")
    clock.now += 1
    progress.tell("another")
    assert text.getvalue() == "comparing\nanother\n"


def test_the_time_left_counts_evaluation_and_report(clock: Clock) -> None:
    """100 s of rounds, 50 s of evaluation and 15 s of the end were expected; all takes twice as long."""
    progress = whole(log()[0])
    assert progress.left() == 165
    progress.begin(TRAINING, 0.1)  # after the first round, which is not measured
    clock.now += 80
    progress.at(0.5, "")
    assert progress.left() == pytest.approx(2 * (50 + 65))
    clock.now += 100
    progress.at(1.0, "")
    assert progress.left() == pytest.approx(2 * 65)  # the last round is not the end
    progress.begin(EVALUATION)
    assert progress.left() == pytest.approx(2 * 65)
    clock.now += 50
    progress.at(0.5, "")
    assert progress.left() == pytest.approx(2 * (25 + 15))
    progress.begin(END)
    assert progress.left() == pytest.approx(2 * 15)


def test_a_part_of_a_run_ends_with_its_rounds() -> None:
    assert stages({"evaluation": 50.0}, 100.0, whole=False) == {TRAINING: 100.0}


def test_a_log_gets_a_line_now_and_then_and_what_is_worth_one(clock: Clock) -> None:
    console, text = log()
    progress = whole(console)
    for round in range(1, 101):
        clock.now += 2
        progress.at(round / 100, f"round {round}", line=round == 7)
    shown = [int(line.split()[1]) for line in text.getvalue().splitlines()]
    assert shown == [1, 7, 22, 37, 52, 67, 82, 97]
    assert text.getvalue().splitlines()[-1] == "round 97  about 2.3 min left"


def test_a_terminal_has_a_bar_that_goes_away() -> None:
    text = io.StringIO()
    progress = whole(Console(file=text, width=120, force_terminal=True))
    with progress:
        progress.at(0.25, "round 1", line=False)
        progress.at(0.5, "round 2", line=True)
        progress.bar.refresh()
    assert "training" in text.getvalue() and "━" in text.getvalue()
    assert re.search(r"about [^\n]* left  round 2", text.getvalue())


def test_without_an_estimate_no_time_is_told_at_first(clock: Clock) -> None:
    console, text = log()
    progress = Progress(console, {EVALUATION: 1.0}, known=False)
    progress.at(0.0, "first", line=True)
    clock.now += 10
    progress.at(0.25, "second", line=True)
    assert text.getvalue().splitlines() == ["first", "second  about 30 s left"]


def test_a_stage_that_finds_work_done_is_expected_to_take_less(clock: Clock) -> None:
    progress = whole(log()[0])
    progress.begin(EVALUATION)
    before = progress.left()
    progress.shorten(0.5)
    after = progress.left()
    assert before is not None and after is not None
    assert before - after == pytest.approx(0.5 * 50.0)


def test_what_status_shows_is_kept_now_and_then(clock: Clock) -> None:
    kept: list[dict[str, Any]] = []
    progress = whole(log()[0], keep=kept.append)
    for round in range(1, 11):
        clock.now += 2
        progress.at(round / 10, "")
    assert [row["share"] for row in kept] == [0.1, 0.4, 0.7, 1.0]
    assert kept[0]["stage"] == TRAINING and kept[-1]["left"] == pytest.approx(20 / 100 * 65)


def test_an_evaluation_says_how_far_it_is(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "POLL_SECONDS", 0.01)
    console, text = log()
    progress, units = Progress(console, {EVALUATION: 1.0}, known=False), [100]
    with Steps({"one": Step(30, 10), "absent": Step(10, 10), "two": Step(60, 20)}, lambda: units[0], progress) as said:
        clock.now += 40
        units[0] += 5
        deadline = time.monotonic() + 30
        while "  one: 5 of 10 work units" not in text.getvalue():
            assert time.monotonic() < deadline
            clock.now += module.LINE_SECONDS
            time.sleep(0.02)
        assert progress.share == pytest.approx(0.15)
        said.done("one")
        assert progress.share == pytest.approx(0.3)
        said.done("two")
    assert progress.share == pytest.approx(1.0)
    assert re.search(r"  one: \d+ s  about", text.getvalue()) and "  two: 0 s  about 0 s left" in text.getvalue()
