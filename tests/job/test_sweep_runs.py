from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from smoke_runs import last_weights, rounds, smoke, summary

from redif_ray.api import SweepResult
from redif_ray.config import load
from redif_ray.runs.folder import RunFinished
from redif_ray.runs.jsonl import read_rows
from redif_ray.sweep.sweep import sweep

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1800)]  # whole runs, each with its start-up
HALVING = [
    "sweep.space.learner.lr=choice(0.01, 0.02)",
    "sweep.scheduler=asha",
    "sweep.rungs=[2]",
    "sweep.reduction=1.01",
    "sweep.trials=1",
    "sweep.repeats=1",
]


def test_killed_and_resumed_it_keeps_what_it_has_and_its_runs_are_those_of_distill(
    cluster: None, root: Path, first: Path
) -> None:
    uri = f"tracking.uri=sqlite:///{root}/sweep.db"
    command = [sys.executable, "-m", "redif_ray.cli", "sweep", "smoke", f"run.root={root}", "run.name=halving", uri]
    process = subprocess.Popen([*command, *HALVING], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = root / "halving-sweep"
    while rounds(folder / "trials" / "recipe") < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not read_rows(folder / "trials.jsonl")
    began = json.loads((folder / "trials" / "recipe" / "run.json").read_text())["mlflow_run_id"]

    config = smoke(root, "halving", *HALVING, uri)
    assert sweep(config, resume=True) == folder
    assert last_weights(folder / "trials" / "recipe") == last_weights(first)
    recipe, trial = read_rows(folder / "trials.jsonl")
    assert (recipe["run"], len(recipe["scores"])) == ("recipe", 2)
    assert (trial["run"], len(trial["scores"]), trial["error"]) == ("trial-000", 1, None)  # cut: nothing trains at 0.01
    assert not (folder / "trials" / "recipe" / "summary.json").exists()  # held-out noises choose nothing

    (repeat,) = read_rows(folder / "repeats.jsonl")
    assert repeat["run"] == "recipe-seed-1" and summary(folder / "trials" / "recipe-seed-1")["seed"] == 1
    found = json.loads((folder / "summary.json").read_text())
    assert found["held_out"]["recipe"][0]["frechet"] > 0 and not found["gain"]
    assert "No settings were better" in (folder / "report.md").read_text()
    result = SweepResult.read(folder)
    assert [row["run"] for row in result.trials] == ["recipe", "trial-000"] and result.trials[0][
        "validation/reward"
    ] < 0
    assert [(row["settings"], row["seed"]) for row in result.held_out] == [("recipe", 1)]
    best = load(result.best, [])
    assert best.run.name == "halving-best" and best.learner == config.learner

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/sweep.db")
    parent = json.loads((folder / "run.json").read_text())["mlflow_run_id"]
    experiment = client.get_run(parent).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.run_name for run in nested} == {"recipe", "trial-000", "recipe-seed-1"} and len(nested) == 3
    assert began in {run.info.run_id for run in nested}
    with pytest.raises(RunFinished):
        sweep(config, resume=True)


def test_in_a_population_the_worse_takes_up_the_better(cluster: None, root: Path, first: Path) -> None:
    config = smoke(
        root,
        "population",
        "sweep.space.learner.lr=choice(0.01, 0.02)",
        "sweep.scheduler=pbt",
        "sweep.trials=2",
        "sweep.generations=2",
        "sweep.repeats=0",
    )
    text = io.StringIO()
    folder = sweep(config, console=Console(file=text, width=80))
    told = text.getvalue()
    assert "4 of 4 runs are to be trained: about " in told and f"They are in {folder / 'trials'}" in told
    assert told.index("to be trained") < told.index("member-00-0")
    rows = {row["run"]: row for row in read_rows(folder / "trials.jsonl")}
    assert all(row["error"] is None for row in rows.values()) and len(rows) == 4
    assert rows["member-00-1"]["source"] == rows["member-01-1"]["source"] == "member-00-0"
    runs = folder / "trials"
    assert last_weights(runs / "member-00-1") == last_weights(first)  # a run in two parts is the run
    donor, taken = (read_rows(runs / name / "metrics.jsonl") for name in ("member-00-0", "member-01-1"))
    assert taken[: len(donor)] == donor and rounds(runs / "member-01-1") == 4
    assert last_weights(runs / "member-01-1") != last_weights(first)
