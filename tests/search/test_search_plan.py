from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from redif_ray import config
from redif_ray.diffusion import schedules
from redif_ray.diffusion.levels import VariancePreserving
from redif_ray.runs.jsonl import read_rows
from redif_ray.search.plan import Plan, Slot, Trial
from redif_ray.trials.journal import Journal

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESS = VariancePreserving((1 - BETAS).cumprod(0))


def settings(**values: Any) -> config.Search:
    return config.Search(**{"shape_trials": 10, "refine_trials": 8, "sampler": "tpe", **values})


def plan(search: config.Search, steps: tuple[int, ...] = (3, 4)) -> Plan:
    return Plan(search, 0, PROCESS, {n: schedules.named(PROCESS, n) for n in steps})


def distance(timesteps: list[float]) -> float:
    """To levels that no named schedule has."""
    wanted = schedules.build(PROCESS, len(timesteps), "karras", tilt=-0.4, bow=1.0).levels.half_log_snr[1:-1]
    return float((schedules.explicit(PROCESS, timesteps).levels.half_log_snr[1:-1] - wanted).square().mean())


def finish(search: Plan, slot: Slot) -> Trial:
    proposal = search.proposal(slot)
    timesteps = proposal["timesteps"]
    scores = [1.1 * distance(timesteps)]
    if search.goes_on(slot, scores):
        scores.append(distance(timesteps))
    return search.over(slot, proposal, scores, None)


def run(search: Plan, seed: int = 0) -> list[dict[str, Any]]:
    """All trials, at most `concurrent` at once, which end in a random order."""
    order, waiting, running = random.Random(seed), search.missing(), []
    while waiting or running:
        while waiting and len(running) < search.settings.concurrent and search.ready(waiting[0]):
            running.append(finish(search, waiting.pop(0)))
        search.record(running.pop(order.randrange(len(running))))
    return [search.trials[n].row() for n in sorted(search.trials)]


@pytest.mark.slow
@pytest.mark.parametrize("concurrent", [1, 4])
def test_the_order_in_which_trials_end_changes_nothing(concurrent: int) -> None:
    assert run(plan(settings(concurrent=concurrent)), 1) == run(plan(settings(concurrent=concurrent)), 2)


@pytest.mark.long
def test_the_result_is_never_worse_than_a_start_and_here_better() -> None:
    search = plan(settings(sampler="gp", shape_trials=25, refine_trials=15), (4,))
    run(search)
    starts = [t.scores[-1] for t in search.trials.values() if t.stage == "start"]
    assert search.best(4).scores[-1] < 0.2 * min(starts)


def test_every_trial_is_asked_once_and_starts_see_the_whole_bank() -> None:
    search = plan(settings())
    rows = run(search)
    assert [row["number"] for row in rows] == list(range(len(search.slots)))
    assert all(len(row["scores"]) == 2 for row in rows if row["stage"] == "start")
    cut = [row for row in rows if len(row["scores"]) == 1]
    assert 0 < len(cut) < len(rows)


def test_failed_trials_are_no_part_of_what_is_known() -> None:
    search = plan(settings(), (4,))
    for slot in search.missing():
        trial = finish(search, slot)
        if (slot.stage == "start" and slot.index == 0) or slot.number % 5 == 4:
            trial = Trial(slot.number, slot.steps, slot.stage, trial.params, trial.timesteps, [], "ValueError: no")
        search.record(trial)
    assert search.best(4).error is None


class Tuned:
    """What Tune does with a journal, one trial at a time; `cut` of them and then no more."""

    def __init__(self, path: Path, cut: int | None = None) -> None:
        journal = Journal(plan(settings(), (3,)), path, lambda trial: None)
        while journal.pending and cut != 0:
            proposal = journal.start("a")
            assert proposal is not None
            timesteps = proposal["timesteps"]
            go_on = journal.scored("a", 0, 1.1 * distance(timesteps))
            if go_on:
                assert not journal.scored("a", 1, distance(timesteps))
            journal.over("a")
            cut = None if cut is None else cut - 1


@pytest.mark.slow
def test_a_search_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    Tuned(whole)
    Tuned(parts, cut=4)
    with parts.open("a") as file:
        file.write('{"number": 4, "steps": 3, "sta')  # a line that was being written
    Tuned(parts, cut=9)
    Tuned(parts)
    assert read_rows(parts) == read_rows(whole)
    assert len({row["number"] for row in read_rows(parts)}) == len(read_rows(parts))


def test_a_journal_keeps_errors(tmp_path: Path) -> None:
    journal = Journal(plan(settings(), (3,)), tmp_path / "trials.jsonl", lambda trial: None)
    journal.start("a")
    journal.over("a", "FloatingPointError: not finite")
    assert json.loads((tmp_path / "trials.jsonl").read_text())["error"] == "FloatingPointError: not finite"
