"""Copies in object stores, over HTTP: nothing can be renamed there, folders are names, parts come one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import SCHEMES, Bucket
from uploads import CONSOLE, checkpoint, configured, rounds_of

from redif_ray.config import Config
from redif_ray.runs import backup_store as remotes
from redif_ray.runs import backup_thread
from redif_ray.runs.backup import prepare, uploading
from redif_ray.runs.backup_store import Remote, UploadError
from redif_ray.runs.folder import RunFolder


@pytest.fixture(params=SCHEMES)
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    found = Bucket(request.param)
    yield found
    found.go()


@pytest.fixture
def config(bucket: Bucket, tmp_path: Path) -> Config:
    return configured(tmp_path / "runs", f"checkpoint.upload={bucket.at('runs')}")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["corrupt", "missing"])
def test_only_what_is_whole_comes_back_from_a_bucket(part: str, config: Config, run: RunFolder, tmp_path: Path) -> None:
    remote, _ = prepare(config, resume=False, console=CONSOLE)
    assert remote is not None
    with uploading(config, run, remote, CONSOLE):
        checkpoint(run.path, 2)
    newest = remote.copies()[0]
    at = f"{newest.name}/checkpoints/round-000002/state.safetensors"
    if part == "missing":
        remote.filesystem.delete_file(f"{remote.path}/{at}")
    else:
        data = remote.read(at)
        assert data is not None
        remote.write(at, data[:-1] + b"?")
    with pytest.raises(UploadError, match=rf"is not what was uploaded; delete {newest.name} there"):
        remote.fetch(newest, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.slow
def test_a_bucket_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    config = configured(tmp_path / "runs", f"checkpoint.upload={bucket.at('runs', 'other')}")
    with pytest.raises(UploadError, match=r"://.*other/runs/first cannot be written \(.*check that the bucket"):
        prepare(config, resume=False, console=CONSOLE)
    assert not (tmp_path / "runs").exists()


S3 = pytest.param("s3", marks=pytest.mark.long)  # its client tries for a quarter of a minute
PATIENT = pytest.mark.parametrize("bucket", ["gs", S3], indirect=True)


@PATIENT
@pytest.mark.long
def test_a_store_that_does_not_answer(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, the client of Google Cloud Storage tries for a quarter of an hour a call."""
    monkeypatch.setattr(remotes, "GS_RETRY_SECONDS", 1)
    config, began = configured(tmp_path / "runs", f"checkpoint.upload={bucket.at('runs')}"), time.monotonic()
    bucket.go()
    with pytest.raises(UploadError, match=r"runs/first cannot be written \(.*[Cc]ould not connect"):
        prepare(config, resume=False, console=CONSOLE)
    assert time.monotonic() - began < 40
    bucket.come()


@PATIENT
@pytest.mark.slow
def test_a_store_that_goes_and_comes_back(
    bucket: Bucket, config: Config, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_thread, "AGAIN_SECONDS", (0.1,))
    monkeypatch.setattr(remotes, "GS_RETRY_SECONDS", 1)
    remote, _ = prepare(config, resume=False, console=CONSOLE)
    with uploading(config, run, remote, CONSOLE) as own:
        assert own is not None and remote is not None
        checkpoint(run.path, 2)
        own.hand()
        own.wait()
        bucket.go()
        checkpoint(run.path, 4)
        own.hand()
        while not own.failures:
            time.sleep(0.1)
        assert own.error
        bucket.come()
        own.wait()
    assert rounds_of(remote) == [4, 2]
    assert Remote.connect(config).copies()[0].round == 4
