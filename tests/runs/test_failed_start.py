"""A start that failed before it made anything gives its name back, and nothing else ever does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redif_ray.config import Config, ConfigError, load
from redif_ray.errors import UserError
from redif_ray.runs.folder import RunError, RunFolder
from redif_ray.runs.jsonl import append_rows
from redif_ray.runs.status import status

EXISTS = "exists; continue it with --resume, or choose another run.name"
FINISHED = "holds a finished run; read its report"
MENDED = "reward.terms.mine.options.callable=mended.py:score"


def configured(root: Path, *overrides: str) -> Config:
    found: Config = load(None, [f"run.root={root}", "run.name=first", *overrides])
    return found


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """What is left of a run whose reward failed in the calibration."""
    folder = RunFolder.open(configured(tmp_path, "reward.terms.mine.options.callable=broken.py:score"), resume=False)
    folder.update_state(mlflow_run_id="of the failed start", calibration={})
    append_rows(folder.path / "metrics.jsonl", [{"round": -1, "phase": "start"}])
    append_rows(folder.path / "lost.jsonl", [{"lost": "rollout", "time": 0}])
    (folder.path / ".train" / "first").mkdir(parents=True)
    folder.keep_failure(UserError("returned str"))
    folder.close()
    return folder.path


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_the_same_command_starts_it_anew(failed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert RunFolder.place(configured(tmp_path, MENDED), resume=False) == failed
    folder = RunFolder.open(configured(tmp_path, MENDED), resume=False)
    assert folder.state == {} and set(files(failed)) == {"config.yaml"} and (failed / "checkpoints").is_dir()
    assert load(failed / "config.yaml") == configured(tmp_path, MENDED)
    assert f"{failed} is started anew: it failed before it trained anything (UserError: returned str)" in caplog.text
    folder.close()
    with pytest.raises(RunError, match=EXISTS):  # a start that was interrupted, say, has not failed
        RunFolder.open(configured(tmp_path), resume=False)


def test_the_status_and_a_resume_say_so(failed: Path, tmp_path: Path) -> None:
    state = status(failed)[1]["state"]
    assert state == (
        "failed: UserError: returned str; it trained nothing, so the same command without --resume starts it anew"
    )
    with pytest.raises(ConfigError, match=r"resume it with that one or, since it trained nothing, leave --resume out"):
        RunFolder.open(configured(tmp_path, MENDED), resume=True)
    RunFolder.open(configured(tmp_path, "reward.terms.mine.options.callable=broken.py:score"), resume=True).close()


WORTH: dict[str, Any] = {
    "a trained round": lambda path: append_rows(path / "metrics.jsonl", [{"round": 0, "phase": "policy"}]),
    "a checkpoint": lambda path: (path / "checkpoints" / "round-000001").mkdir(),
    "the best student": lambda path: (path / "checkpoints" / "best").mkdir(),
    "a summary": lambda path: (path / "summary.json").write_text("{}"),
    "a copy elsewhere": lambda path: (path / "upload.json").write_text('{"time": 1, "error": null}'),
    "an evaluation": lambda path: (path / "evaluation-8.json").write_text("{}"),
    "a file of the user's": lambda path: (path / "notes.txt").write_text("mine"),
    "a folder of the user's": lambda path: (path / "pictures").mkdir(),
    "a finished trial": lambda path: append_rows(path / "trials.jsonl", [{"error": None}]),
    "a trial's checkpoint": lambda path: (path / "trials" / "run-0" / "checkpoints" / "best").mkdir(parents=True),
    "a descent": lambda path: (path / "run.json").write_text('{"failure": "x", "descents": {"4": [1]}}'),
    "rows that cannot be read": lambda path: (path / "metrics.jsonl").write_text("{\n"),
    "a state that cannot be read": lambda path: (path / "run.json").write_text("{"),
    "no failure": lambda path: (path / "run.json").write_text("{}"),
}


@pytest.mark.parametrize("make", WORTH.values(), ids=WORTH)
def test_what_is_worth_keeping_is_kept(make: Any, failed: Path, tmp_path: Path) -> None:
    make(failed)
    before = files(failed)
    message = FINISHED if (failed / "summary.json").exists() else EXISTS
    for refused in (RunFolder.place, RunFolder.open):
        with pytest.raises(RunError, match=message):
            refused(configured(tmp_path, MENDED), resume=False)
    assert files(failed) == before


def test_a_start_that_is_in_use_is_left_alone(failed: Path, tmp_path: Path) -> None:
    before = files(failed)
    with RunFolder.reopen(failed), pytest.raises(RunError, match="is in use by another process"):
        RunFolder.open(configured(tmp_path, MENDED), resume=False)
    assert files(failed) == before


def test_a_folder_that_another_start_filled_meanwhile_is_kept(
    failed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "place", lambda *_, **__: failed)
    append_rows(failed / "metrics.jsonl", [{"round": 0}])
    with pytest.raises(RunError, match=EXISTS):
        RunFolder.open(configured(tmp_path, MENDED), resume=False)


def test_links_are_removed_and_not_followed(failed: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("mine")
    (failed / ".tune").symlink_to(tmp_path / "elsewhere")
    RunFolder.open(configured(tmp_path, MENDED), resume=False).close()
    assert (tmp_path / "elsewhere" / "data").read_text() == "mine" and not (failed / ".tune").is_symlink()


def test_a_sweep_all_of_whose_trials_failed_can_be_started_anew(failed: Path, tmp_path: Path) -> None:
    append_rows(failed / "trials.jsonl", [{"error": "RewardError: returned str"}])
    trial = failed / "trials" / "run-0"
    trial.mkdir(parents=True)
    (failed / "trials" / "run-0.log").write_text("failed")
    (trial / "config.yaml").write_text("{}")
    (trial / "run.json").write_text(json.dumps({"failure": "RewardError"}))
    RunFolder.open(configured(tmp_path, MENDED), resume=False).close()
    assert set(files(failed)) == {"config.yaml"}
