"""Files and folders that are written whole or not at all.

Each is written under a temporary name beside its final one, flushed to disk and renamed: a reader, even after a power
cut, sees all of the old content or all of the new, never a part. Permissions follow the umask, even where a library
writes files that their owner alone can read, as that of safetensors does. The OSError of a disk that refuses names the
file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or have your quota raised",
    errno.EFBIG: "raise the limit of `ulimit -f`",
    errno.EMFILE: "raise the limit of `ulimit -n`",
    errno.ENFILE: "close files, since this machine has too many open",
    errno.EACCES: "give yourself access to it",
    errno.EPERM: "give yourself access to it",
    errno.EROFS: "make it writable",
    errno.EIO: "look after the disk",
    errno.ESTALE: "mount the disk again",
}
PARTIAL = ".partial"  # suffix of temporary names; a killed process may leave such a file behind


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which takes the name `path` when the block ends without an error.

    A file of that name is replaced, and several processes may write the same one at once. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with _named(path):
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new empty folder to fill, which takes the name `path` when the block ends without an error.

    Only one process may write `path` at a time; parents are created. Raises OSError if `path` exists, unless `replace`:
    then the old folder stands at `aside(path)` between two renames and goes once the new one has its name.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists; move it away, or choose another name")
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    try:
        with _named(path):
            yield partial
            mode = partial.stat().st_mode & 0o666
            for folder, _, names in os.walk(partial, topdown=False):
                for name in names:
                    Path(folder, name).chmod(mode)
                _flush(*(Path(folder, name) for name in names), Path(folder))
            if replace and path.exists():
                _replace(partial, path)
            else:
                partial.rename(path)
            _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if replace:
        shutil.rmtree(aside(path), ignore_errors=True)


def aside(path: Path) -> Path:
    """Return the name under which a folder that is being replaced stands for an instant, or after a kill just then."""
    return path.with_name(f".{path.name}.old")


def remedy(error: OSError) -> str | None:
    """Return what a user can do about an error of a disk or of a limit of files; None for any other OSError."""
    return REMEDIES.get(error.errno or 0)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an OSError of the block the name `path` where it has none, as an error of a write has not.

    safetensors has an error of its own for a disk that refuses, which becomes an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _replace(partial: Path, path: Path) -> None:
    old = aside(path)
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise


def _flush(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
