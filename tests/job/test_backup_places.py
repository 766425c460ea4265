"""Where copies may go, and what a start makes of those that are there."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pyarrow import fs
from uploads import CONSOLE, checkpoint, configured, rounds_of, value

from redif_ray.config import Config, ConfigError, load
from redif_ray.runs import backup_store
from redif_ray.runs.backup import prepare, refuse, uploading
from redif_ray.runs.backup_store import UploadError
from redif_ray.runs.folder import RunError, RunFolder, latest_checkpoint, prune_checkpoints
from redif_ray.runs.status import status

PARTS = 12_000_000  # bytes of a file that buckets get in several parts


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path / "runs", f"checkpoint.upload={(tmp_path / 'disk').as_uri()}")


@pytest.fixture
def uploaded(config: Config, run: RunFolder) -> Config:
    """A run with copies of rounds 2 and 4."""
    remote, _ = prepare(config, resume=False, console=CONSOLE)
    with uploading(config, run, remote, CONSOLE) as own:
        assert own is not None
        for round in (2, 4):
            checkpoint(run.path, round)
            own.hand()
            own.wait()
    return config


@pytest.mark.slow
def test_what_is_uploaded_comes_back(place: str, tmp_path: Path) -> None:
    config = configured(tmp_path / "runs", f"checkpoint.upload={place}")
    remote, fetched = prepare(config, resume=False, console=CONSOLE)
    assert remote is not None and not fetched
    assert remote.uri == f"{place.partition('?')[0]}/first"
    run = RunFolder.open(config, resume=False)
    with uploading(config, run, remote, CONSOLE) as own:
        assert own is not None
        for round in (2, 4, 6, 8, 10):
            checkpoint(run.path, round, size=PARTS)
            checkpoint(run.path, round - 1, "best")
            (run.path / "metrics.jsonl").write_text(f'{{"round": -1, "at": {round}}}\n')
            own.hand()
            own.wait()
            prune_checkpoints(run.path / "checkpoints", 1)
    run.close()
    assert rounds_of(remote) == [10, 8, 6]  # checkpoint.keep
    listed = remote.filesystem.get_file_info(fs.FileSelector(remote.path, recursive=True))
    there = {info.path.removeprefix(f"{remote.path}/") for info in listed if info.type == fs.FileType.File}
    named = {f"{copy.name}/{path}" for copy in remote.copies() for path in (*copy.sha256, "copy.json")}
    assert there == named | {"writer"}
    assert re.match(rf"round 10, \d+ s ago, at {remote.uri}", status(run.path)[1]["upload"])

    elsewhere = configured(tmp_path / "other", f"checkpoint.upload={place}")
    assert prepare(elsewhere, resume=True, console=CONSOLE)[1]
    folder = tmp_path / "other/first"
    assert value(folder, "round-000010") == 10 and value(folder, "best") == 9
    for name in ("config.yaml", "run.json", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (run.path / name).read_bytes()
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "run.json", "metrics.jsonl", "checkpoints"}
    RunFolder.open(elsewhere, resume=True).close()


def test_what_is_here_wins_unless_the_copy_is_newer(uploaded: Config, run: RunFolder) -> None:
    assert prepare(uploaded, resume=True, console=CONSOLE)[1] is False
    checkpoint(run.path, 6)
    assert prepare(uploaded, resume=True, console=CONSOLE)[1] is False
    newest = latest_checkpoint(run.path / "checkpoints")
    assert newest is not None
    for name in ("round-000006", "round-000004"):
        (run.path / "checkpoints" / name).rename(run.path / name)
    newer = f"newer, at round 4, than {run.path}, at round 2; move {run.path} away to go on"
    with pytest.raises(RunError, match=newer):
        prepare(uploaded, resume=True, console=CONSOLE)


def test_copies_of_another_run_are_left_alone(uploaded: Config, run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds a run; continue it with --resume, or choose another run.name"):
        prepare(uploaded, resume=False, console=CONSOLE)
    other = configured(tmp_path / "other", f"checkpoint.upload={uploaded.checkpoint.upload}")
    RunFolder.open(other, resume=False).close()
    with pytest.raises(RunError, match=r"holds another run than .*other/first; choose another checkpoint.upload"):
        prepare(other, resume=True, console=CONSOLE)
    (tmp_path / "other/first/config.yaml").unlink()
    with pytest.raises(RunError, match=r"holds no run and .* does; move .* away"):
        prepare(other, resume=True, console=CONSOLE)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://user:hunter2@bucket/x",
        "abfs://:hunter2@account/x",
        "s3://b/x?secret_key=hunter2",
        "abfs://a/x?client_secret=hunter2",
        "foo://user:hunter2@bucket/x",
    ],
)
def test_a_secret_is_handed_to_the_file_system_and_not_repeated(uri: str, tmp_path: Path) -> None:
    given: list[str] = []

    def refuse(uri: str) -> Any:
        given.append(uri)
        raise OSError(f"cannot open {uri}, hunter2 is wrong")

    with (
        patch.object(backup_store, "_filesystem", refuse),
        pytest.raises(ConfigError, match=r"checkpoint\.upload=") as told,
    ):
        prepare(configured(tmp_path, f"checkpoint.upload={uri}"), resume=False, console=CONSOLE)
    assert given == [uri] and "hunter2" not in "".join(traceback.format_exception(told.value))


def test_what_is_no_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.upload is no URI") as told:
        load(None, ["checkpoint.upload=user:hunter2@bucket"])
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://bucket/x", "checkpoint.upload=foo://bucket/x: ValueError: the scheme foo:// is unknown"),
        ("adl://store/x", "the file system of adl:// is not installed"),
        ("file:///proc/disk", "file:///proc/disk/first cannot be written .*credentials"),
    ],
)
def test_where_nothing_can_be_uploaded_nothing_starts(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, UploadError), match=message):
        prepare(configured(tmp_path, f"checkpoint.upload={uri}"), resume=False, console=CONSOLE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "/first/x"])
def test_a_run_is_not_uploaded_into_itself(below: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"overlaps the run folder .*; choose a place outside"):
        prepare(configured(tmp_path, f"checkpoint.upload={tmp_path.as_uri()}{below}"), resume=False, console=CONSOLE)


def test_a_file_system_of_fsspec(run: RunFolder, tmp_path: Path) -> None:
    config = configured(tmp_path / "runs", "checkpoint.upload=memory://copies")
    remote, _ = prepare(config, resume=False, console=CONSOLE)
    assert remote is not None
    with uploading(config, run, remote, CONSOLE):
        checkpoint(run.path, 2)
    assert prepare(configured(tmp_path / "other", "checkpoint.upload=memory://copies"), resume=True, console=CONSOLE)[1]
    assert value(tmp_path / "other/first", "round-000002") == 2


def test_without_it_nothing_happens(run: RunFolder, tmp_path: Path) -> None:
    config = configured(tmp_path / "runs")
    assert prepare(config, resume=True, console=CONSOLE) == (None, False)
    with uploading(config, run, None, CONSOLE) as own:
        assert own is None
    assert "upload" not in run.state and "upload" not in status(run.path)[1]


@pytest.mark.parametrize("command", ["search", "sweep"])
def test_others_refuse_it(command: str, config: Config) -> None:
    with pytest.raises(ConfigError, match=f"redif {command} uploads nothing.*checkpoint.upload=null"):
        refuse(config, command)
    from redif_ray.search.search import search
    from redif_ray.sweep.sweep import sweep

    job: Any = {"search": search, "sweep": sweep}[command]
    with pytest.raises(ConfigError, match=f"redif {command} uploads nothing"):
        job(config)


def test_status_of_a_run_that_never_came_through(run: RunFolder) -> None:
    (run.path / "upload.json").write_text(json.dumps({"uri": "", "error": "OSError: away"}))
    assert status(run.path)[1]["upload"] == "nothing yet; fails: OSError: away"
