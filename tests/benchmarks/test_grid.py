"""The grid's arms are recipes that load, cost what the budget allows, and are compared seed by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import grid
from benchmarks.kept import Results
from redif_ray.config import Config, load


@pytest.mark.slow
@pytest.mark.parametrize("steps", grid.BUDGET)
def test_every_arm_has_as_many_candidates_that_load(steps: int) -> None:
    for name, arm in grid.arms(steps).items():
        assert len(set(arm.candidates)) == 5, name
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


def test_a_run_of_other_settings_is_made_under_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def distill(config: Config, *, resume: bool) -> None:
        made.append(config.run.name)
        folder = tmp_path / "runs" / config.run.name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("")
        summary = {"arms": {}, "compute": {}, "notes": {"student_gain": {}}}
        (folder / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr("benchmarks.kept.distill", distill)
    monkeypatch.setattr("benchmarks.kept.read_rows", lambda _: [{"validation/reward": 1.0}])
    results = Results(tmp_path / "results.json", tmp_path / "runs")
    one, other = (["learner.rounds=3"], ["learner.rounds=4"])
    for settings in (one, one, other, other, one):
        found = Results(results.path, results.root).of("a", "smoke", settings, seed=0, targets="a")
        assert found["settings"] == ["smoke", *settings]
    assert made[0] == "a" and len(made) == 2 and made[1].startswith("a-")


ROOT = Path(__file__).parents[2]


def above_the_teacher(steps: int, name: str) -> str:
    """The mean and the interval of the kept runs of a method, at the candidate that tuning chose, rounded once."""
    runs = json.loads((ROOT / "benchmarks" / "results" / "grid.json").read_text())

    def frechet(run: Any, arm: str) -> float:
        return float(run["arms"][arm]["frechet"])

    tuned = {i: runs[f"{steps}-{name}-tune-{i}"] for i in range(5) if f"{steps}-{name}-tune-{i}" in runs}
    best = grid.arms(steps)[name].candidates[min(tuned, key=lambda i: frechet(tuned[i], "student"))]
    found = [
        next(
            run
            for key, run in runs.items()
            if key.startswith(f"{steps}-{name}-{seed}") and {*best} <= {*run["settings"]}
        )
        for seed in (1, 2, 3)
    ]
    return grid.interval([frechet(run, "student") - frechet(run, "teacher_full") for run in found], digits=1)


def cells_of(page: str, first: str) -> list[list[str]]:
    """The rows of a page's tables whose first cell begins with `first`."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def figures() -> list[tuple[int, str, str]]:
    """Return what the pages say of each method: the number of steps, the method and its cell."""
    told = []
    for _, method, four, two in cells_of("README.md", "a reward") + cells_of("README.md", "no reward"):
        told += [
            (4, method.strip("`").removeprefix("method="), four),
            (2, method.strip("`").removeprefix("method="), two),
        ]
    names = [name.strip("`") for name in cells_of("docs/methods.md", "| `draft` | `output`")[0][1:]]
    for steps in (8, 4, 2):
        (row,) = cells_of("docs/methods.md", f"{steps} steps")
        told += [(steps, name, cell) for name, cell in zip(names, row[1:], strict=True) if cell]
    return told


def test_the_pages_have_figures() -> None:
    assert len(figures()) == 2 * 3 + 3 + 8 + 5


@pytest.mark.parametrize(("steps", "name", "cell"), figures())
def test_the_figures_of_the_pages_are_those_of_the_kept_runs(steps: int, name: str, cell: str) -> None:
    assert cell == above_the_teacher(steps, name)
