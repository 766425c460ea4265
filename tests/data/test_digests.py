from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from redif_ray.data import digests
from redif_ray.data.digests import Digests
from redif_ray.data.targets import TargetStoreError


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read, a moment later than they were written."""
    found: list[Path] = []

    def digest(path: Path) -> str:
        found.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "file_sha256", digest)
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)
    return found


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, read: list[Path]) -> None:
    path, kept = tmp_path / "weights", tmp_path / "store" / "files"
    path.write_bytes(b"abc")
    first = Digests(kept)(path)
    (tmp_path / "link").symlink_to(path)
    assert Digests(kept)(path) == Digests(kept)(tmp_path / "link") == first == hashlib.sha256(b"abc").hexdigest()
    assert len(read) == 1
    changed = path.stat().st_mtime_ns
    time.sleep(0.02)  # a tick of the file system's clock
    path.write_bytes(b"abd")
    os.utime(path, ns=(changed, changed))  # as a copy that keeps times
    assert Digests(kept)(path) == hashlib.sha256(b"abd").hexdigest() and len(read) == 2


def test_what_has_just_changed_is_not_kept(tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 60.0)
    (tmp_path / "weights").write_bytes(b"abc")
    for _ in range(2):
        Digests(tmp_path / "files")(tmp_path / "weights")
    assert len(read) == 2 and not (tmp_path / "files").exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, read: list[Path]) -> None:
    for name in ("weights", "file"):
        (tmp_path / name).write_bytes(b"abc")
    with pytest.raises(TargetStoreError, match=r"cannot write .*file/.*; set teacher.store to a folder"):
        Digests(tmp_path / "file")(tmp_path / "weights")
