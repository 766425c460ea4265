from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from rich.console import Console
from slow_disk import SlowDisk

from redif_ray.checkpoint import load_checkpoint, save_checkpoint
from redif_ray.config import Config, ConfigError, load
from redif_ray.pipeline import uploader
from redif_ray.pipeline.remote import Copy, Remote, UploadError
from redif_ray.pipeline.run_folder import RunError, RunFolder, latest_checkpoint, prune_checkpoints
from redif_ray.pipeline.status import status
from redif_ray.pipeline.upload import claim, complete, prepare, refuse, uploading
from redif_ray.pipeline.uploader import Uploader

CONSOLE = Console(quiet=True)


def configured(root: Path, *overrides: str) -> Config:
    found: Config = load(None, [f"run.root={root}", "run.name=first", "tracking.uri=off", *overrides])
    return found


def checkpoint(folder: Path, round: int, name: str | None = None, size: int = 1000) -> None:
    """One that differs from those of other rounds."""
    tensors = {"weights": torch.full((size // 4,), float(round))}
    save_checkpoint(folder / "checkpoints" / (name or f"round-{round:06d}"), tensors, {"round": round})


def value(folder: Path, name: str) -> float:
    return float(load_checkpoint(folder / "checkpoints" / name)[0]["weights"][0])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path / "runs", f"checkpoint.upload={(tmp_path / 'disk').as_uri()}")


@pytest.fixture
def run(config: Config) -> Iterator[RunFolder]:
    folder = RunFolder.open(config, resume=False)
    yield folder
    folder.close()


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
def remote(disk: SlowDisk, tmp_path: Path) -> Remote:
    return Remote(fs.PyFileSystem(disk), f"{tmp_path}/disk/first", "slow://disk/first")


@pytest.fixture
def outages() -> list[int]:
    return []


@pytest.fixture
def own(run: RunFolder, remote: Remote, outages: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploader]:
    monkeypatch.setattr(uploader, "AGAIN_SECONDS", (0.01, 0.01, 0.01, 0.02))
    claim(remote, run)
    kept = run.state["upload"]
    found = Uploader(lambda: remote, run.path, (kept["run"], kept["writer"]), 2, lambda: outages.append(1))
    yield found
    found.leave()


def test_what_is_uploaded_comes_back(config: Config, run: RunFolder, tmp_path: Path) -> None:
    remote, fetched = prepare(config, resume=False, console=CONSOLE)
    assert remote is not None and not fetched
    with uploading(config, run, remote, CONSOLE) as own:
        assert own is not None
        for round in (2, 4, 6, 8, 10):
            checkpoint(run.path, round)
            checkpoint(run.path, round - 1, "best")
            (run.path / "metrics.jsonl").write_text(f'{{"round": -1, "at": {round}}}\n')
            own.hand()
            own.wait()
            prune_checkpoints(run.path / "checkpoints", 1)
    assert remote.rounds() == [10, 8, 6]
    named = {file.at for copy in remote.copies() for file in copy.files.values()}
    assert {f"files/{p.name}" for p in (tmp_path / "disk/first/files").iterdir()} == named
    assert status(run.path)[1]["upload"].startswith("round 10, 0 s ago, at file:///")

    elsewhere = configured(tmp_path / "other", f"checkpoint.upload={(tmp_path / 'disk').as_uri()}")
    _, fetched = prepare(elsewhere, resume=True, console=CONSOLE)
    folder = tmp_path / "other/first"
    assert fetched and value(folder, "round-000010") == 10 and value(folder, "best") == 9
    for name in ("config.yaml", "run.json", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (run.path / name).read_bytes()
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "run.json", "metrics.jsonl", "checkpoints"}
    RunFolder.open(elsewhere, resume=True).close()


def test_a_copy_has_the_best_of_its_own_round(run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote,
                                              tmp_path: Path) -> None:  # fmt: skip
    """The disk hangs in the middle of the second copy, after best changed; what is whole is the first."""
    checkpoint(run.path, 2)
    checkpoint(run.path, 1, "best")
    own.hand()
    own.wait()
    checkpoint(run.path, 4)
    checkpoint(run.path, 3, "best")
    disk.open.clear()
    disk.entered.clear()
    own.hand()
    assert disk.entered.wait(10)
    remote.fetch(remote.copies()[0], tmp_path / "fetched")
    assert value(tmp_path / "fetched", "best") == 1 and value(tmp_path / "fetched", "round-000002") == 2
    disk.open.set()
    own.wait()
    remote.fetch(remote.copies()[0], tmp_path / "then")
    assert value(tmp_path / "then", "best") == 3 and value(tmp_path / "then", "round-000004") == 4


def test_a_copy_is_named_last(run: RunFolder, own: Uploader, disk: SlowDisk) -> None:
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    names = [Path(p).name for p in disk.written]
    assert names.index("round-000002.json") == len(names) - 1 and len(names) > 4


def test_nobody_waits_for_a_disk_that_hangs(run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote,
                                            monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    """Checkpoints are pruned and best is replaced meanwhile; of those that wait the newest is uploaded."""
    disk.open.clear()
    disk.entered.clear()
    started = time.monotonic()
    for round in (2, 4, 6, 8):
        checkpoint(run.path, round)
        checkpoint(run.path, round, "best")
        own.hand()
        prune_checkpoints(run.path / "checkpoints", 1)
        assert disk.entered.wait(10)
    assert time.monotonic() - started < 5 and remote.rounds() == []
    assert len(list((run.path / ".upload").iterdir())) == 2
    monkeypatch.setattr(uploader, "STALLED_SECONDS", 0.3)
    with pytest.raises(UploadError, match="no byte was taken for 0 s"):
        own.wait()
    monkeypatch.undo()
    disk.open.set()
    own.wait()
    assert remote.rounds() == [8, 2]
    assert not list((run.path / ".upload").iterdir())
    remote.fetch(remote.copies()[1], tmp_path / "fetched")
    assert value(tmp_path / "fetched", "round-000002") == value(tmp_path / "fetched", "best") == 2


def test_an_outage_is_told_once_and_training_goes_on(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, outages: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    disk.fails = uploader.ATTEMPTS + 5
    with caplog.at_level(logging.WARNING):
        checkpoint(run.path, 2)
        own.hand()
        while disk.fails > 2:
            assert remote.rounds() == []
            time.sleep(0.001)
        own.wait()
    assert outages == [1] and remote.rounds() == [2]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "round 2 is not uploaded (OSError: the bucket is away)" in told[0]
    assert "the upload goes on: the copy of round 2 is whole" in told[1]


def test_one_failure_is_nobodys_business(run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote,
                                         outages: list[int]) -> None:  # fmt: skip
    disk.fails = 2
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    assert remote.rounds() == [2] and outages == []


def test_a_file_that_did_not_arrive_whole_is_sent_again(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, tmp_path: Path
) -> None:
    disk.cuts = 2
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    remote.fetch(remote.copies()[0], tmp_path / "fetched")


def test_the_end_of_a_run_is_uploaded_or_an_error(
    config: Config, run: RunFolder, remote: Remote, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uploader, "AGAIN_SECONDS", (0.01,))
    monkeypatch.setattr(Remote, "connect", lambda config: remote)
    console = Console(record=True, width=300)
    go_on = f"all of it is in {run.path}. The same command with --resume uploads"
    with pytest.raises(UploadError, match=go_on) as told, uploading(config, run, remote, console):
        checkpoint(run.path, 2)
        (run.path / "report.md").write_text("report")
        (run.path / "student").mkdir()
        (run.path / "student" / "model_index.json").write_text("{}")
        (run.path / "summary.json").write_text("{}")
        disk.fails = 10**6
    assert "slow://disk/first lacks the end of this run (OSError: the bucket is away)" in str(told.value)
    assert "uploaded" not in console.export_text()
    assert "fails: OSError: the bucket is away" in status(run.path)[1]["upload"]

    disk.fails = 0
    run.close()
    complete(config, remote, console)
    assert f"uploaded     {remote.uri}" in console.export_text()
    assert remote.copies()[0].finished and (tmp_path / "disk/first/report.md").read_text() == "report"
    begun = len(disk.written)
    complete(config, remote, console)
    assert len(disk.written) == begun
    remote.fetch(remote.copies()[0], tmp_path / "fetched")
    assert (tmp_path / "fetched/student/model_index.json").exists() and (tmp_path / "fetched/summary.json").exists()


def test_an_error_of_the_run_is_not_hidden(
    config: Config, run: RunFolder, remote: Remote, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "AGAIN_SECONDS", (0.01,))
    monkeypatch.setattr(Remote, "connect", lambda config: remote)
    for fails, word in ((0, "uploaded     slow://"), (10**6, "not uploaded to slow://")):
        console = Console(record=True, width=300)
        with pytest.raises(RunError, match="recall fell"), uploading(config, run, remote, console):
            checkpoint(run.path, 2)
            disk.fails = fails
            raise RunError("recall fell")
        assert word in console.export_text()


def test_the_rows_of_a_checkpoint_come_before_its_copy(run: RunFolder, own: Uploader, remote: Remote) -> None:
    logged = threading.Event()
    checkpoint(run.path, 2)
    own.hand(ready=logged.wait)
    time.sleep(0.1)
    assert remote.rounds() == []
    (run.path / "metrics.jsonl").write_text('{"round": 1}\n')
    logged.set()
    own.wait()
    assert remote.copies()[0].files["metrics.jsonl"].bytes == 13


def test_a_start_that_was_taken_for_dead_writes_no_more(run: RunFolder, own: Uploader, remote: Remote) -> None:
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    claim(remote, run)
    checkpoint(run.path, 4)
    own.hand()
    with pytest.raises(UploadError, match="another start of the run writes there now"):
        own.wait()
    assert remote.rounds() == [2]


def test_without_links_a_checkpoint_is_copied_aside(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: str, target: str) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr("os.link", no_links)
    disk.open.clear()
    checkpoint(run.path, 2)
    own.hand()
    checkpoint(run.path, 4)
    prune_checkpoints(run.path / "checkpoints", 1)
    disk.open.set()
    own.wait()
    assert remote.rounds() == [2]


@pytest.mark.parametrize("part", ["corrupt", "missing", "half"])
def test_only_what_is_whole_comes_back(part: str, run: RunFolder, own: Uploader, remote: Remote,
                                       tmp_path: Path) -> None:  # fmt: skip
    for round in (2, 4):
        checkpoint(run.path, round)
        own.hand()
        own.wait()
    newest, place = remote.copies()[0], Path(remote.path)
    file = place / newest.files["checkpoints/round-000004/state.safetensors"].at
    if part == "half":
        (place / newest.name).write_text((place / newest.name).read_text()[:300])
        remote.fetch(remote.copies()[0], tmp_path / "fetched")
        assert value(tmp_path / "fetched", "round-000002") == 2
        return
    if part == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UploadError, match=r"is not what was uploaded; delete round-000004.json there"):
        remote.fetch(newest, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists() and not list(tmp_path.glob(".fetched*"))


def test_a_copy_cannot_name_files_elsewhere(run: RunFolder, own: Uploader, remote: Remote, tmp_path: Path) -> None:
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    copy = remote.copies()[0]
    strange = Copy(2, copy.run, False, {"../stolen": copy.files["config.yaml"]})
    with pytest.raises(UploadError, match=r"names \.\./stolen, which is no file of a run folder"):
        remote.fetch(strange, tmp_path / "fetched")
    assert not (tmp_path / "stolen").exists()


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


@pytest.mark.parametrize("uri", ["s3://user:hunter2@bucket/x", "abfs://:hunter2@account/x", "s3://b/x?secret_key=hunter2",
                                 "abfs://a/x?client_secret=hunter2", "user:hunter2@bucket"])  # fmt: skip
def test_a_secret_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.upload") as told:
        load(None, [f"checkpoint.upload={uri}"])
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(("uri", "message"), [
    ("foo://bucket/x", "checkpoint.upload=foo://bucket/x: ValueError: nothing here knows the scheme foo://"),
    ("adl://store/x", "the file system of adl:// is not installed"),
    ("file:///proc/disk", "file:///proc/disk/first cannot be written .*credentials"),
])  # fmt: skip
def test_where_nothing_can_be_uploaded_nothing_starts(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, UploadError), match=message):
        prepare(configured(tmp_path, f"checkpoint.upload={uri}"), resume=False, console=CONSOLE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "/first/x"])
def test_a_run_is_not_uploaded_into_itself(below: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"that is where the run folder .* is"):
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
