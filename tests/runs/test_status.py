"""What `redif status` says of folders in every state; it changes none of them."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from redif_ray.config import Config, load
from redif_ray.errors import UserError
from redif_ray.runs import lock
from redif_ray.runs.folder import RunError, RunFolder
from redif_ray.runs.jsonl import append_rows
from redif_ray.runs.mlflow_page import charts, mlflow_page
from redif_ray.trials.names import SEARCH, SWEEP, TRIALS
from redif_ray.trials.status import follow, show, status


@pytest.fixture
def config(tmp_path: Path) -> Config:
    found: Config = load("smoke", [f"run.root={tmp_path}", "tracking.uri=off"])
    return found


def row(round: int, phase: str = "policy", **values: float) -> dict[str, Any]:
    return {"round": round, "phase": phase, "groups_per_second": 12.0, "seconds/round": 2.0, **values}


def validated(reward: float, recall: float) -> dict[str, float]:
    return {"validation/reward": reward, "validation/recall": recall}


@pytest.fixture
def folder(config: Config) -> RunFolder:
    """Open, so of a run that is at work: 2 of 4 rounds."""
    folder = RunFolder.open(config, resume=False)
    folder.update_state(calibration={})
    append_rows(
        folder.path / "metrics.jsonl",
        [
            {"round": -1, "phase": "start", **validated(-0.5, 0.5)},
            row(0, "warm_start"),
            row(1, **validated(-0.25, 0.75)),
        ],
    )
    append_rows(folder.path / "lost.jsonl", [{"lost": "rollout"}, {"lost": "unit"}, {"lost": "unit"}])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "pha')
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_a_run_at_work(folder: RunFolder) -> None:
    checkpoint = folder.path / "checkpoints" / "round-000002"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("{}")
    os.utime(checkpoint / "manifest.json", (time.time() - 120, time.time() - 120))
    before = contents(folder.path)
    word, lines = status(folder.path)
    assert contents(folder.path) == before
    assert word == "running" and f"process {os.getpid()} on {socket.gethostname()}" in lines["state"]
    assert (lines["round"], lines["phase"]) == ("2 of 4", "training, policy")
    assert lines["speed"] == "0.5 rounds/s, 12 groups/s"
    assert lines["left"] == "about 4 s of training, then the evaluation"
    assert lines["validation"] == "reward -0.25 (start -0.5), recall 0.75 (start 0.5), after round 2"
    assert lines["checkpoint"] == "round-000002, 2.0 min ago"
    assert (
        lines["lost"] == "1 rollout, 2 unit; started again, and no result has changed"
        and lines["results"] == "none yet"
        and "MLflow" not in lines
    )
    folder.close()


def test_the_time_left_ends_with_the_run(folder: RunFolder) -> None:
    """Rounds took twice as long as expected, so the evaluation and the end will."""
    folder.update_state(expected={"rounds": {"warm_start": 1.0, "policy": 1.0}, "evaluation": 45.0})
    assert status(folder.path)[1]["left"] == "about 2.1 min: 4 s of training, 2.0 min of evaluation and report"
    append_rows(folder.path / "metrics.jsonl", [row(2), row(3)])
    assert "left" not in status(folder.path)[1]
    folder.keep_progress({"stage": "evaluation", "share": 0.25, "left": 7500.0})
    assert status(folder.path)[1]["left"] == "about 2.1 h; evaluation is 25% done"
    folder.close()


def test_how_to_open_a_run_in_mlflow(config: Config) -> None:
    page = charts("7", "abc")
    state = {"mlflow_run_id": "abc", "mlflow_page": page}

    def lines(uri: str, **kept: str) -> list[str]:
        tracking = config.tracking.model_copy(update={"uri": uri})
        return mlflow_page(config.model_copy(update={"tracking": tracking}), kept)

    assert page == "#/experiments/7/runs/abc/model-metrics?workflowType=machine_learning"
    assert lines("https://host/mlflow/", **state) == [f"https://host/mlflow/{page}"]
    local = ["mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'", f"http://127.0.0.1:5000/{page}"]
    assert lines("sqlite:////a b/mlflow.db", **state) == local
    assert lines("databricks", **state) == lines("databricks", mlflow_run_id="abc") == ["run abc at databricks"]
    assert lines("off", **state) == ["run abc at a store of an earlier start"]
    assert lines("off") == []


def test_phases(config: Config, folder: RunFolder) -> None:
    append_rows(folder.path / "metrics.jsonl", [row(2), row(3)])
    assert status(folder.path)[1]["phase"] == "evaluation"
    (folder.path / "metrics.jsonl").unlink()
    assert status(folder.path)[1]["phase"] == "training, warm_start"
    folder.write("run.json", "{}")
    assert status(folder.path)[1]["phase"] == "start-up and calibration"
    folder.close()


@pytest.mark.slow
def test_how_a_run_ended(config: Config, folder: RunFolder) -> None:
    folder.close()
    assert status(folder.path)[1]["state"] == "stopped; continue with --resume"
    again = RunFolder.open(config, resume=True)
    again.keep_failure(UserError("too little"))
    again.close()
    assert status(folder.path)[1]["state"] == "failed: UserError: too little; continue with --resume"
    again = RunFolder.open(config, resume=True)
    assert again.state["failure"] is None and status(folder.path)[0] == "running"
    again.close()
    (folder.path / "timeline.json").write_text("{}")
    assert status(folder.path)[1]["results"] == "none yet" and status(folder.path)[1]["timeline"] == "timeline.json"
    for name in ("report.md", "summary.json"):
        (folder.path / name).write_text("{}")
    word, lines = status(folder.path)
    assert (word, lines["state"], lines["results"]) == ("finished", "finished", "report.md")
    with RunFolder.reopen(folder.path):
        assert status(folder.path)[1]["state"].startswith("finished; in use by process")
    assert status(folder.path)[1]["state"] == "finished"


def test_a_run_of_a_sweep_is_over_after_the_rounds_that_were_asked_for(config: Config, folder: RunFolder) -> None:
    folder.update_state(part=2)
    folder.close()
    word, lines = status(folder.path)
    assert word == "finished" and lines["state"].startswith("finished with the 2 rounds that its sweep asked for")
    assert (lines["round"], lines["phase"]) == ("2 of 4", "over")
    again = RunFolder.open(config, resume=True)
    again.keep_failure(UserError("the bucket is away"))
    again.close()
    assert status(folder.path)[0] == "failed"


def test_a_run_whose_process_is_gone(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.close()
    held, before = folder.path / lock.LOCK, {"pid": 1, "since": 0.0}  # that process began later
    held.write_text(json.dumps({"host": socket.gethostname(), **before}))
    assert status(folder.path)[1]["state"].startswith("stopped: process 1 on ")
    held.write_text(json.dumps({"host": "elsewhere", **before}))
    assert status(folder.path)[0] == "running"
    os.utime(held, (time.time() - 100, time.time() - 100))
    assert status(folder.path)[1]["state"] == "stopped: process 1 on elsewhere is gone; continue with --resume"


def test_whoever_holds_a_folder_shows_that_it_lives(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.01)
    folder = RunFolder.open(config, resume=False)
    held = folder.path / lock.LOCK
    os.utime(held, (0, 0))
    deadline = time.monotonic() + 30
    while not held.stat().st_mtime:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RunError, match="in use"):
        RunFolder.open(config, resume=True)
    assert status(folder.path)[0] == "running"  # whoever came too late did not take its name away
    folder.close()
    assert held.read_text() == ""


def test_a_search(config: Config) -> None:
    tree = config.model_dump()
    tree["run"]["name"] += SEARCH
    folder = RunFolder.open(Config.model_validate(tree), resume=False)
    folder.update_state(trials=30)
    whole = [0.5] * len(config.search.rungs)
    append_rows(
        folder.path / TRIALS,
        [
            {"number": 0, "steps": 2, "scores": [*whole[1:], 0.25], "error": None},
            {"number": 1, "steps": 2, "scores": [0.1], "error": None},
            {"number": 2, "steps": 2, "scores": [], "error": "lost"},
        ],
    )
    word, lines = status(folder.path)
    assert (word, lines["trials"], lines["failed"]) == ("running", "3 of 30", "1 trials")
    assert lines["best at 2 steps"] == "distance 0.25000, trial 0"
    folder.close()


def test_a_sweep(config: Config) -> None:
    tree = config.model_dump()
    tree["run"]["name"] += SWEEP
    tree["sweep"]["rungs"], tree["sweep"]["scheduler"] = (2,), "asha"
    folder = RunFolder.open(Config.model_validate(tree), resume=False)
    folder.update_state(trials=17)
    append_rows(
        folder.path / TRIALS,
        [
            {"run": "recipe", "generation": 0, "scores": [-2.0, -1.0], "error": None},
            {"run": "trial-000", "generation": 0, "scores": [-0.5], "error": None},  # cut
            {"run": "trial-001", "generation": 0, "scores": [-2.0, -0.75], "error": None},
            {"run": "trial-002", "generation": 0, "scores": [], "error": "lost"},
        ],
    )
    _, lines = status(folder.path)
    assert (lines["trials"], lines["failed"]) == ("4 of 17", "1 trials")
    assert lines["best"] == "trial-001, validation/reward -0.75000"
    folder.close()


def printed(what: Callable[[Path, Console], None], path: Path) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        what(path, console)
    return capture.get()


def test_it_fits_80_columns_and_following_ends(folder: RunFolder) -> None:
    folder.close()
    text = printed(show, folder.path)
    assert "2 of 4" in text and max(len(line) for line in text.splitlines()) <= 80
    assert printed(follow, folder.path).strip() == text.strip()


def test_the_link_to_mlflow_is_printed_in_one_piece(config: Config) -> None:
    tracking = config.tracking.model_copy(update={"uri": "http://127.0.0.1:5000"})
    folder = RunFolder.open(config.model_copy(update={"tracking": tracking}), resume=False)
    folder.update_state(mlflow_run_id="f" * 32, mlflow_page=charts("1", "f" * 32))
    folder.close()
    assert f"http://127.0.0.1:5000/{charts('1', 'f' * 32)}\n" in printed(show, folder.path)


def test_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=f"{path} is not a run folder"):
            status(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"round": "x"}\n'),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"phase": "policy"}\n'),
        ("lost.jsonl", '"~"\n'),
        ("run.json", '{"calibration": {}, "progress": 3, "expected": [1]}'),
    ],
)
def test_a_file_that_no_run_writes_is_an_error_that_names_the_folder(name: str, text: str, folder: RunFolder) -> None:
    (folder.path / name).write_text(text)
    if name == "run.json":
        append_rows(folder.path / "metrics.jsonl", [row(3)])
    with pytest.raises(RunError, match=f"{folder.path}: one of its files, .* holds what no run writes"):
        status(folder.path)


def test_the_state_of_a_run_is_an_object(folder: RunFolder) -> None:
    (folder.path / "run.json").write_text("[1, 2]")
    with pytest.raises(RunError, match=r"run\.json is corrupt"):
        status(folder.path)
