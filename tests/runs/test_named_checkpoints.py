"""Commands on a run that is not over take the newest checkpoint where there is no best one, and say so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from redif_ray.checkpoint import MANIFEST
from redif_ray.runs.deployed import checkpoint_named
from redif_ray.runs.folder import RunError


def run(tmp_path: Path, *names: str) -> Path:
    (tmp_path / "checkpoints").mkdir()
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / MANIFEST).touch()
    return tmp_path


def test_the_newest_stands_in_for_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run(tmp_path, "round-00002", "round-00010", ".round-00012.old")
    with caplog.at_level(logging.WARNING):
        assert checkpoint_named(folder, "best") == "round-00010"
    assert "has no checkpoint best yet; its newest one, round-00010, is taken" in caplog.text
    assert checkpoint_named(folder, "round-00002") == "round-00002"


def test_what_is_there_is_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint_named(run(tmp_path, "best", "round-00002"), "best") == "best" and not caplog.records


@pytest.mark.parametrize("name", ["warm_start", "../checkpoints/round-00002", "..", "", "round-00003"])
def test_another_name_is_an_error_that_lists_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no checkpoint .*: it has round-00002$"):
        checkpoint_named(run(tmp_path, "round-00002"), name)


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no checkpoint 'best': it has none yet; wait for the first"):
        checkpoint_named(tmp_path, "best")
