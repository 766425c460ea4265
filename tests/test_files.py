"""The final name of a file or folder holds the old or the new content, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from redif_ray.files import aside, atomic_file, atomic_folder, remedy

Writer = Callable[[Path, str], AbstractContextManager[object]]


@contextmanager
def a_file(path: Path, text: str) -> Iterator[None]:
    with atomic_file(path) as partial:
        partial.write_text(text)
        yield


@contextmanager
def a_folder(path: Path, text: str) -> Iterator[None]:
    with atomic_folder(path, replace=True) as partial:
        (partial / "below").mkdir()
        (partial / "below" / "text").write_text(text)
        yield


def content(path: Path) -> str:
    return (path if path.is_file() else path / "below" / "text").read_text()


both = pytest.mark.parametrize("write", [a_file, a_folder])


@both
def test_the_new_takes_the_place_of_the_old(write: Writer, tmp_path: Path) -> None:
    for text in ("old", "new"):
        with write(tmp_path / "x", text):
            assert not (tmp_path / "x").exists() if text == "old" else content(tmp_path / "x") == "old"
        assert content(tmp_path / "x") == text and list(tmp_path.iterdir()) == [tmp_path / "x"]


@both
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_the_old(write: Writer, error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), write(tmp_path / "x", "half"):
        raise error
    assert not list(tmp_path.iterdir())
    with write(tmp_path / "x", "old"):
        pass
    with pytest.raises(error), write(tmp_path / "x", "half"):
        raise error
    assert content(tmp_path / "x") == "old" and list(tmp_path.iterdir()) == [tmp_path / "x"]


@both
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_refuses_leaves_the_old(
    write: Writer, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("the disk is full")

    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            refuse()
        return real(self, target)

    with write(tmp_path / "x", "old"):
        pass
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        if call == "fsync":
            patch.setattr(os, "fsync", refuse)
        else:
            patch.setattr(Path, "rename", rename)
            patch.setattr(Path, "replace", rename)
        with write(tmp_path / "x", "half"):
            pass
    assert content(tmp_path / "x") == "old" and list(tmp_path.iterdir()) == [tmp_path / "x"]


@both
def test_all_is_on_the_disk_before_it_gets_its_name(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{handle}").readlink().name, (tmp_path / "x").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with write(tmp_path / "x", "new"):
        pass
    *before, last = flushed
    assert last == (tmp_path.name, True) and not any(named for _, named in before)
    if write is a_folder:
        assert [name for name, _ in before] == ["text", "below", ".x.partial"]
    else:
        assert len(before) == 1


@pytest.mark.slow
@both
def test_a_killed_process_leaves_the_old(write: Writer, tmp_path: Path) -> None:
    with write(tmp_path / "x", "old"):
        pass
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_files import {write.__name__} as write
with write(Path({str(tmp_path / "x")!r}), "half"):
    os.kill(os.getpid(), {signal.SIGKILL.value})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert content(tmp_path / "x") == "old" and len(list(tmp_path.iterdir())) == 2
    with write(tmp_path / "x", "new"):
        pass
    assert content(tmp_path / "x") == "new"


def test_a_folder_that_is_not_to_be_replaced_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(FileExistsError, match=r"/x exists; move it away"), atomic_folder(tmp_path / "x"):
        pytest.fail("nothing is written for nothing")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "late" / "y") as partial:
        (partial / "text").write_text("new")
        (tmp_path / "late" / "y" / "mine").mkdir(parents=True)
    assert sorted(p.name for p in (tmp_path / "late").rglob("*")) == ["mine", "y"]


def test_a_kill_between_the_two_renames_is_made_good(tmp_path: Path) -> None:
    with a_folder(tmp_path / "x", "old"):
        pass
    (tmp_path / "x").rename(aside(tmp_path / "x"))
    with a_folder(tmp_path / "x", "new"):
        assert content(aside(tmp_path / "x")) == "old"
    assert content(tmp_path / "x") == "new" and list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as one, atomic_file(tmp_path / "x") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "x").read_text() == "one" and list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_follow_the_umask(mask: int, tmp_path: Path) -> None:
    """Also those of files that a library keeps from others."""
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "folder") as partial:
            (partial / "below").mkdir()
            for path in (partial / "a", partial / "below" / "b"):
                path.touch(0o600)
        with atomic_file(tmp_path / "c") as partial:
            partial.unlink(missing_ok=True)
            partial.touch(0o600)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


@both
def test_an_error_of_the_disk_names_the_file(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'") as told, write(tmp_path / "x", "half"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert remedy(told.value) == "free space"
    with pytest.raises(FileNotFoundError, match="missing") as told, write(tmp_path / "x", "half"):
        (tmp_path / "missing").read_text()
    assert told.value.filename == str(tmp_path / "missing") and remedy(told.value) is None


def test_a_disk_that_refuses_tensors_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """Files of this process can grow to a megabyte; so this one can have half of its bytes."""
    import torch  # here, since the test above imports this file in another process
    from safetensors.torch import save_file

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/x'") as told, atomic_folder(tmp_path / "x") as partial:
            save_file({"w": torch.zeros(2**19)}, partial / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert remedy(told.value) == "raise the limit of `ulimit -f`" and not list(tmp_path.iterdir())
