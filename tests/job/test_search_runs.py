from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from smoke_runs import smoke

from redif_ray.api import FoundSchedules
from redif_ray.config import read_yaml
from redif_ray.data.schedule_file import read_schedule
from redif_ray.job.export import export_checkpoint
from redif_ray.runs.folder import RunFinished
from redif_ray.runs.jsonl import read_rows
from redif_ray.search.search import search

pytestmark = [pytest.mark.cluster, pytest.mark.long]
SMALL = [
    "search.steps=[2,3]",
    "search.rungs=[16,32]",
    "search.unit_noises=8",
    "search.shape_trials=3",
    "search.refine_trials=2",
    "search.network_timestep_trials=2",
    "search.engine=both",
    "search.descent.iterations=3",
    "search.descent.batch=8",
]


@pytest.fixture(scope="module")
def whole(cluster: None, root: Path) -> Path:
    return search(smoke(root, "whole", *SMALL, f"tracking.uri=sqlite:///{root}/mlflow.db"))


def test_the_answer_is_never_worse_on_the_bank_than_a_start(whole: Path) -> None:
    trials = read_rows(whole / "trials.jsonl")
    for steps in (2, 3):
        own = [t for t in trials if t["steps"] == steps]
        seen, shifted = (
            [t["scores"][-1] for t in own if len(t["scores"]) == 2 and (t["stage"] == "network_timesteps") == last]
            for last in (False, True)
        )
        starts = [t["scores"][-1] for t in own if t["stage"] == "start"]
        rows = [r for r in json.loads((whole / "summary.json").read_text())["schedules"] if r["steps"] == steps]
        found = {r["name"]: r["bank"] for r in rows if r["bank"] is not None}
        assert found["searched"] == min(seen) <= min(starts)
        assert found.get("searched, network timesteps") == min(shifted, default=None)  # all may be worse, and cut
        assert found["searched by gradient"] <= min(starts)
        best, times = min(found, key=lambda name: found[name]), read_schedule(whole / "schedule.yaml", steps)[0]
        assert times.levels[0] == rows[0]["timesteps"][0] == 999
        assert (times.network_timesteps is not None) == (best == "searched, network timesteps")
        assert np.isfinite([r["distance"] for r in rows]).all()
    assert (whole / "report.md").read_text().count("the best named schedule here") >= 4  # both engines at both N
    assert (whole / "report.html").is_file() and not (whole / "checkpoints").exists()
    told = FoundSchedules.read(whole).schedules
    assert {row["steps"] for row in told} == {2, 3} and {"name", "timesteps", "distance", "bank"} <= {*told.columns}
    with pytest.raises(RunFinished):
        search(smoke(whole.parent, "whole", *SMALL, f"tracking.uri=sqlite:///{whole.parent}/mlflow.db"), resume=True)


def test_every_trial_is_a_nested_run(whole: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{whole.parent}/mlflow.db")
    parent = json.loads((whole / "run.json").read_text())["mlflow_run_id"]
    assert client.get_run(parent).info.status == "FINISHED"
    experiment = client.get_run(parent).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=500)
    assert len(nested) == len(read_rows(whole / "trials.jsonl"))
    assert all("distance" in run.data.metrics for run in nested)


def test_killed_and_resumed_with_more_workers_it_finds_the_same(whole: Path, root: Path) -> None:
    overrides = [f"run.root={root}", "run.name=killed", "tracking.uri=off", *SMALL]
    command = [sys.executable, "-m", "redif_ray.cli", "search", "smoke", *overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = root / "killed-search" / "trials.jsonl"
    while len(read_rows(journal)) < 23:  # past the starts
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(read_rows(journal)) < len(read_rows(whole / "trials.jsonl"))
    killed = search(smoke(root, "killed", *SMALL, "reward.max_workers=2"), resume=True)
    assert read_rows(journal) == read_rows(whole / "trials.jsonl")
    found, expected = (read_yaml(folder / "schedule.yaml") for folder in (killed, whole))
    assert found == expected


def test_an_export_carries_the_schedule_that_was_found(whole: Path, first: Path, tmp_path: Path) -> None:
    out = export_checkpoint(first, tmp_path / "out", "best", whole / "schedule.yaml")
    found = read_schedule(whole / "schedule.yaml", 2)[0]
    settings, card = json.loads((out / "redif.json").read_text()), (out / "README.md").read_text()
    for key, times in (("timesteps", found.levels), ("network_timesteps", found.network_timesteps)):
        assert settings.get(key) == (None if times is None else list(times))
        assert times is None or str([int(t) for t in times])[1:-1] in card
