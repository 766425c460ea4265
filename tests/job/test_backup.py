"""The thread that copies checkpoints, and what comes back of them, on a disk that is slow, fails or hangs."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs
from rich.console import Console
from slow_disk import SlowDisk
from uploads import checkpoint, configured, rounds_of, value

from redif_ray.config import Config
from redif_ray.runs import backup_thread
from redif_ray.runs.backup import claim, complete, uploading
from redif_ray.runs.backup_store import Remote, UploadError
from redif_ray.runs.backup_thread import Uploader
from redif_ray.runs.folder import RunError, RunFolder, prune_checkpoints
from redif_ray.runs.status import status


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path / "runs", f"checkpoint.upload={(tmp_path / 'disk').as_uri()}")


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
    monkeypatch.setattr(backup_thread, "AGAIN_SECONDS", (0.01, 0.01, 0.01, 0.02))
    claim(remote, run)
    kept = run.state["upload"]
    found = Uploader(lambda: remote, run.path, (kept["run"], kept["writer"]), 2, lambda: outages.append(1))
    yield found
    found.leave()


def test_a_copy_has_the_best_of_its_own_round(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, tmp_path: Path
) -> None:
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
    assert names.index("copy.json") == len(names) - 1 and len(names) > 4


@pytest.mark.slow
def test_nobody_waits_for_a_disk_that_hangs(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    assert time.monotonic() - started < 5 and rounds_of(remote) == []
    assert len(list((run.path / ".upload").iterdir())) == 2
    monkeypatch.setattr(backup_thread, "STALLED_SECONDS", 0.3)
    with pytest.raises(UploadError, match="no byte was taken for 0 s"):
        own.wait()
    monkeypatch.undo()
    disk.open.set()
    own.wait()
    assert rounds_of(remote) == [8, 2]
    assert not list((run.path / ".upload").iterdir())
    remote.fetch(remote.copies()[1], tmp_path / "fetched")
    assert value(tmp_path / "fetched", "round-000002") == value(tmp_path / "fetched", "best") == 2


def test_an_outage_is_told_once_and_training_goes_on(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, outages: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    disk.fails = backup_thread.ATTEMPTS + 5
    with caplog.at_level(logging.WARNING):
        checkpoint(run.path, 2)
        own.hand()
        while disk.fails > 2:
            assert rounds_of(remote) == []
            time.sleep(0.001)
        own.wait()
    assert outages == [1] and rounds_of(remote) == [2]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "round 2 is not uploaded (OSError: the bucket is away)" in told[0]
    assert "the upload works again: the copy of round 2 is complete" in told[1]


def test_one_failure_is_nobodys_business(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, outages: list[int]
) -> None:
    disk.fails = 2
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    assert rounds_of(remote) == [2] and outages == []


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
    monkeypatch.setattr(backup_thread, "AGAIN_SECONDS", (0.01,))
    monkeypatch.setattr(Remote, "connect", lambda config: remote)
    console = Console(record=True, width=300)
    go_on = f"the whole run is in {run.path}. Run the same command with --resume to upload"
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
    copy = remote.copies()[0]
    assert copy.finished and (tmp_path / "disk/first" / copy.name / "report.md").read_text() == "report"
    assert rounds_of(remote) == [2] and len(list((tmp_path / "disk/first").glob("round-*"))) == 1
    begun = len(disk.written)
    complete(config, remote, console)
    assert len(disk.written) == begun
    remote.fetch(remote.copies()[0], tmp_path / "fetched")
    assert (tmp_path / "fetched/student/model_index.json").exists() and (tmp_path / "fetched/summary.json").exists()


def test_an_error_of_the_run_is_not_hidden(
    config: Config, run: RunFolder, remote: Remote, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_thread, "AGAIN_SECONDS", (0.01,))
    monkeypatch.setattr(Remote, "connect", lambda config: remote)
    for round, fails, word in ((2, 0, "uploaded     slow://"), (4, 10**6, "not uploaded to slow://")):
        console = Console(record=True, width=300)
        with pytest.raises(RunError, match="recall fell"), uploading(config, run, remote, console):
            checkpoint(run.path, round)
            disk.fails = fails
            raise RunError("recall fell")
        assert word in console.export_text()


def test_the_rows_of_a_checkpoint_come_before_its_copy(run: RunFolder, own: Uploader, remote: Remote) -> None:
    logged = threading.Event()
    checkpoint(run.path, 2)
    own.hand(ready=logged.wait)
    time.sleep(0.1)
    assert rounds_of(remote) == []
    (run.path / "metrics.jsonl").write_text('{"round": 1}\n')
    logged.set()
    own.wait()
    assert remote.read(f"{remote.copies()[0].name}/metrics.jsonl") == b'{"round": 1}\n'


def test_a_start_that_was_taken_for_dead_writes_no_more(run: RunFolder, own: Uploader, remote: Remote) -> None:
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    claim(remote, run)
    checkpoint(run.path, 4)
    own.hand()
    with pytest.raises(UploadError, match="another start of the run writes there now"):
        own.wait()
    assert rounds_of(remote) == [2]


def test_a_copy_is_never_written_again(run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote) -> None:
    """A learner that starts again hands its newest checkpoint over once more; the end of the run makes another copy."""
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    first, written = remote.copies()[0], len(disk.written)
    own.hand()
    own.wait()
    assert remote.copies() == [first] and len(disk.written) == written
    (run.path / "student").mkdir()
    own.hand(finished=True)
    own.wait()
    assert [copy.finished for copy in remote.copies()] == [True] and remote.copies()[0].name != first.name
    assert not any(Path(p).is_relative_to(Path(remote.path, first.name)) for p in disk.written[written:])


def test_a_write_that_comes_late_spoils_no_copy(
    run: RunFolder, own: Uploader, disk: SlowDisk, remote: Remote, tmp_path: Path
) -> None:
    """The learner's upload hangs, the driver's makes the copy meanwhile."""
    there = Remote(fs.PyFileSystem(SlowDisk()), remote.path, remote.uri)
    driver = Uploader(lambda: there, run.path, (own.run, own.writer), 2, lambda: None)
    checkpoint(run.path, 2)
    disk.open.clear()
    disk.entered.clear()
    own.hand()
    assert disk.entered.wait(10)
    (run.path / "metrics.jsonl").write_text("more")
    driver.hand()
    driver.wait()
    copy = remote.copies()[0]
    disk.open.set()
    own.wait()
    left = remote.copies()
    assert len(left) == 1
    remote.fetch(left[0], tmp_path / "fetched")
    assert left[0] != copy or (tmp_path / "fetched" / "metrics.jsonl").read_text() == "more"
    driver.leave()


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
    assert rounds_of(remote) == [2]


@pytest.mark.parametrize("part", ["corrupt", "missing", "half"])
def test_only_what_is_whole_comes_back(
    part: str, run: RunFolder, own: Uploader, remote: Remote, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for round in (2, 4):
        checkpoint(run.path, round)
        own.hand()
        own.wait()
    newest, place = remote.copies()[0], Path(remote.path)
    file = place / newest.name / "checkpoints/round-000004/state.safetensors"
    if part == "half":
        manifest = place / newest.name / "copy.json"
        manifest.write_text(manifest.read_text()[:300])
        remote.fetch(remote.copies()[0], tmp_path / "fetched")
        assert f"{remote.uri}/{newest.name}/copy.json is corrupt; this copy is ignored" in caplog.text
        assert value(tmp_path / "fetched", "round-000002") == 2
        return
    if part == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UploadError, match=rf"is not what was uploaded; delete {newest.name} there"):
        remote.fetch(newest, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists() and not list(tmp_path.glob(".fetched*"))
    shutil.rmtree(place / newest.name)
    remote.fetch(remote.copies()[0], tmp_path / "fetched")
    assert value(tmp_path / "fetched", "round-000002") == 2


def test_a_copy_cannot_name_files_elsewhere(run: RunFolder, own: Uploader, remote: Remote, tmp_path: Path) -> None:
    checkpoint(run.path, 2)
    own.hand()
    own.wait()
    copy = remote.copies()[0]
    strange = replace(copy, sha256={"../stolen": copy.sha256["config.yaml"]})
    with pytest.raises(UploadError, match=r"names \.\./stolen, which lies outside of the run folder"):
        remote.fetch(strange, tmp_path / "fetched")
    assert not (tmp_path / "stolen").exists()
