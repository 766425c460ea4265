from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from redif_ray.config import Config, load
from redif_ray.errors import UserError
from redif_ray.runs.jsonl import read_rows
from redif_ray.sweep.plan import Plan, Run, Slot
from redif_ray.sweep.population import FACTORS, Population
from redif_ray.sweep.repeats import Repeats
from redif_ray.sweep.report import _table, spread, verdict
from redif_ray.sweep.selection import Selection
from redif_ray.sweep.space import read_space
from redif_ray.sweep.trial import score_at
from redif_ray.trials.journal import Journal

SPACE = ("sweep.space.learner.lr=loguniform(1e-6, 1e-2)", "sweep.space.learner.loss=choice(ppo_clip, grpo_guard)")


def recipe(*overrides: str) -> Config:
    found: Config = load("smoke", [*SPACE, *overrides])
    return found


def quality(run: Run, rung: int) -> float:
    """Highest at lr 3e-4 with grpo_guard, and higher the longer it runs."""
    lr = run.settings.get("learner.lr", 1e-4)
    return -abs(math.log10(lr / 3e-4)) - (run.settings.get("learner.loss") != "grpo_guard") - 1 / rung


def play(plan: Plan, seed: int = 0, score: Callable[[Run, int], float] = quality) -> list[dict[str, Any]]:
    """All trials, at most `concurrent` at once, which end in a random order."""
    order, waiting = random.Random(seed), plan.missing()
    running: list[tuple[Slot, dict[str, Any]]] = []
    while waiting or running:
        while waiting and len(running) < plan.concurrent and plan.ready(waiting[0]):
            slot = waiting.pop(0)
            running.append((slot, plan.proposal(slot)))
        slot, proposal = running.pop(order.randrange(len(running)))
        run, scores = Run(**proposal), list[float]()
        for rung in run.rungs:
            scores.append(score(run, rung))
            if not plan.goes_on(slot, scores):
                break
        plan.record(plan.over(slot, proposal, scores, None))
    return [plan.trials[n].row() for n in sorted(plan.trials)]


def selection(*overrides: str) -> Selection:
    config = recipe(*overrides)
    return Selection(config, read_space(config))


def population(*overrides: str) -> Population:
    config = recipe("sweep.scheduler=pbt", "sweep.trials=8", "sweep.generations=4", *overrides)
    return Population(config, read_space(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: selection("sweep.concurrent=4"),
        lambda: population("sweep.concurrent=3"),
        lambda: selection("sweep.concurrent=3", "sweep.scheduler=asha", "sweep.rungs=[2]"),
    ],
)
def test_the_order_in_which_trials_end_changes_nothing(make: Callable[[], Plan]) -> None:
    assert play(make(), 1) == play(make(), 2)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [pytest.param("gp", marks=pytest.mark.long), "tpe", "random", "cmaes", "grid"])
def test_the_best_is_never_worse_than_the_recipe_and_here_better(sampler: str) -> None:
    plan = selection(f"sweep.sampler={sampler}", "sweep.trials=24")
    rows = play(plan)
    assert rows[0]["run"] == "recipe" and rows[0]["settings"] == {}
    assert plan.best().score > rows[0]["scores"][-1]
    assert plan.history() == [(4, plan.best().settings)]


def test_trials_that_fall_behind_are_cut_the_recipe_never() -> None:
    plan = selection("sweep.trials=20", "sweep.sampler=random", "sweep.scheduler=asha", "sweep.rungs=[2]")
    rows = play(plan)
    cut = [row for row in rows if len(row["scores"]) == 1]
    assert 5 < len(cut) < 18
    assert all(len(row["scores"]) == 2 for row in rows[:3])  # there is nothing yet to be cut by
    assert min(row["scores"][0] for row in rows if len(row["scores"]) == 2 and row["number"] > 6) > min(
        row["scores"][0] for row in cut
    )
    assert len(plan.best().scores) == 2


def test_a_sweep_over_the_length_of_runs_runs_each_to_its_end() -> None:
    config = load("smoke", ["sweep.space.learner.rounds=integer(2, 6)", "sweep.trials=6", "sweep.sampler=random"])
    plan = Selection(config, read_space(config))
    play(plan, score=lambda run, rung: rung)
    for slot in plan.slots[1:]:
        run = plan.run(slot)
        assert run.until == 1 + run.settings["learner.rounds"] == run.rungs[-1]


def test_failed_trials_are_no_part_of_what_is_known() -> None:
    plan = selection("sweep.trials=4")
    for slot in plan.missing():
        plan.record(plan.over(slot, plan.proposal(slot), [], "GuardError: collapsed"))
    with pytest.raises(UserError, match=r"no trial .* 5 failed, the first one with GuardError: collapsed"):
        plan.best()


def test_the_worst_take_up_the_best_and_nobody_else_changes() -> None:
    plan = population()
    rows = play(plan)
    by_run = {row["run"]: row for row in rows}
    assert rows[0]["settings"] == {} and len({row["run"] for row in rows}) == 32
    for g in range(1, 4):
        before = sorted((r for r in rows if r["generation"] == g - 1), key=lambda r: -r["scores"][-1])
        for row in (r for r in rows if r["generation"] == g):
            source = by_run[row["source"]]
            if row["index"] in [r["index"] for r in before[-2:]]:
                assert source["run"] in [r["run"] for r in before[:2]]
                assert row["settings"] != source["settings"]
                if "learner.lr" in source["settings"]:
                    lr = row["settings"]["learner.lr"]
                    factor = lr / source["settings"]["learner.lr"]
                    assert any(math.isclose(factor, f) for f in FACTORS) or lr in (1e-6, 1e-2)
            else:
                assert source["index"] == row["index"] and row["settings"] == source["settings"]
    history = plan.history()
    assert [until for until, _ in history] == [1, 2, 3, 4]
    assert history[-1][1] == plan.best().settings


def test_a_member_that_failed_is_replaced() -> None:
    plan = population()
    for slot in plan.slots[:8]:
        proposal = plan.proposal(slot)
        error = "FloatingPointError: nan" if slot.index == 5 else None
        plan.record(plan.over(slot, proposal, [quality(Run(**proposal), 1)], error))
    assert plan.run(plan.slots[8 + 5]).source != "member-05-0"


def test_a_generation_that_failed_as_a_whole_ends_the_sweep_with_its_reason() -> None:
    plan = population()
    for slot in plan.slots[:8]:
        plan.record(plan.over(slot, plan.proposal(slot), [], "FloatingPointError: nan"))
    with pytest.raises(
        UserError, match="all 8 runs of generation 0 failed; the first one with FloatingPointError: nan"
    ):
        plan.run(plan.slots[8])


def test_repeats_run_whole_histories_with_seeds_that_chose_nothing() -> None:
    plan = Repeats(recipe("run.seed=7", "sweep.repeats=2"), [(2, {"learner.lr": 1e-3}), (4, {"learner.lr": 2e-3})])
    rows = play(plan)
    runs = [plan.run(slot) for slot in plan.slots]
    assert [r["run"] for r in rows] == [
        "best-seed-8-0",
        "best-seed-8",
        "recipe-seed-8",
        "best-seed-9-0",
        "best-seed-9",
        "recipe-seed-9",
    ]
    assert [run.seed for run in runs] == [8, 8, 8, 9, 9, 9]
    assert [run.finish for run in runs] == [False, True, True] * 2
    assert runs[1].source == "best-seed-8-0" and runs[0].until == 2 and runs[1].until == 4
    alone = Repeats(recipe("sweep.repeats=3"), [(4, {})])
    assert [plan.stage for plan in alone.slots] == ["recipe"] * 3


def test_a_sweep_that_was_cut_short_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def tuned(path: Path, cut: int) -> None:
        journal = Journal(selection("sweep.trials=6"), path, lambda trial: None)
        while journal.pending and cut:
            proposal = journal.start("a")
            assert proposal is not None
            journal.scored("a", 0, -1e9)  # of a process that was lost
            assert not journal.scored("a", 0, quality(Run(**proposal), 4))
            journal.over("a")
            cut -= 1
        if journal.pending:
            journal.start("b")
            journal.drop("b")

    tuned(tmp_path / "whole.jsonl", 99)
    for cut in (2, 1, 99):
        tuned(tmp_path / "parts.jsonl", cut)
    assert read_rows(tmp_path / "parts.jsonl") == read_rows(tmp_path / "whole.jsonl")


def test_a_score_is_that_of_the_student_that_would_be_deployed() -> None:
    def row(round: int, phase: str, reward: float, mse: float) -> dict[str, Any]:
        return {"round": round, "phase": phase, "validation/reward": reward, "validation/mse": mse}

    rows = [
        row(-1, "start", 9, 9),
        row(1, "warm_start", 5, 5),
        {"round": 2, "phase": "policy"},
        row(3, "policy", 2, -1),
        row(5, "policy", 1, 8),
    ]
    assert score_at(rows, 2, "validation/reward") == 5  # where nothing came after
    assert score_at(rows, 4, "validation/reward") == 2
    assert score_at(rows, 6, "validation/mse") == -1
    assert score_at(rows, 8, "validation/reward") is None


def summary(best: list[float], recipe: list[float]) -> dict[str, Any]:
    """Return the parts of a sweep's summary that its verdict is told by."""
    pairs = [a - b for a, b in zip(best, recipe, strict=True)]
    names = ("frechet", "structural_similarity")
    return {
        "spread": {"best": dict.fromkeys(names, spread(best)), "recipe": dict.fromkeys(names, spread(recipe))},
        "gain": dict.fromkeys(names, spread(pairs)),
    }


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([13.0, 13.1, 12.9], "below 0: the best settings are better"),
        ([15.0, 15.1, 14.9], "above 0: the best settings are worse"),
        ([13.0, 15.0, 14.1], "not apart from 0: no improvement is shown"),
    ],
)
def test_a_sweep_says_whether_its_best_is_better(best: list[float], said: str) -> None:
    found = summary(best, [14.0, 14.0, 14.0])
    assert verdict(found).endswith(f"is {said}.") and "14 with the recipe" in verdict(found)
    console = Console(file=io.StringIO(), width=80)
    console.print(_table(found))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown and "structural_similarity" in shown and "best - recipe" in shown


def test_one_seed_shows_no_improvement() -> None:
    assert "no improvement is shown" in verdict(summary([1.0], [14.0]))
    assert verdict({"gain": {}}) == "No settings were better than the unchanged recipe."


def test_intervals_over_seeds_are_students() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["high"] - 2 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert spread([1.0])["low"] == -math.inf
