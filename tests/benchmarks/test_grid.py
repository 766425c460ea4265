"""The grid's arms are recipes that load, cost what the budget allows, and are compared seed by seed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import grid
from redif_ray.config import load


@pytest.mark.parametrize("steps", grid.BUDGET)
def test_every_arm_has_four_candidates_that_load(steps: int) -> None:
    for name, arm in grid.arms(steps).items():
        assert len(set(arm.candidates)) == 4, name
        for candidate in arm.candidates:
            load("fashion_mnist", [*grid.COMMON, f"student.steps={steps}", *arm.fixed, *candidate])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sfd", "output", "redif"])
def test_rounds_are_the_most_that_the_budget_pays_for(name: str) -> None:
    arm, budget = grid.arms(4)[name], 15_000.0
    given = grid.settings(4, arm, arm.candidates[0], budget)
    config = load("fashion_mnist", list(given))
    rounds = config.warm_start.rounds if name == "sfd" else config.learner.rounds
    more = load("fashion_mnist", [*given, f"{arm.key}={rounds + 1}"])
    assert grid.cost(config) <= budget < grid.cost(more)
    assert (config.warm_start.rounds > 0) == (name in ("sfd", "redif"))


def result(frechet: float) -> dict[str, Any]:
    student = {"frechet": frechet, "recall": 0.9, "paired": {"pixel_mse": 0.001}}
    compute = {"update": {"seconds": 60.0, "flops": 2e12}, "evaluation": {"seconds": 1e9, "flops": 1e18}}
    return {"arms": {"student": student, "teacher_full": {"frechet": 12.0}}, "compute": compute}


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 4, the arms by .5 +- .1: Student's t for three seeds is 4.303."""
    found = {"a": [result(x) for x in (13.0, 15.0, 17.0)], "b": [result(x) for x in (13.5, 15.4, 17.6)]}
    rows = grid.table(found).splitlines()
    assert rows[2] == "| a | 15.0 | +3.00 [-1.97, +7.97] |  | 0.900 | 0.00100 | 60 | 2.0 |"
    assert rows[3].split(" | ")[3] == "+0.50 [+0.25, +0.75]"


def test_one_seed_has_no_interval() -> None:
    assert grid.interval([0.5]) == "+0.50"
