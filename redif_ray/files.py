"""Files and folders that are written whole or not at all.

Each is written under a temporary name beside its final one, flushed to disk and renamed: a reader, even after a power
cut, sees all of the old content or all of the new, never a part. Permissions follow the umask, even where a library
writes files that their owner alone can read, as that of safetensors does.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # suffix of temporary names; a killed process may leave such a file behind


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which takes the name `path` when the block ends without an error.

    A file of that name is replaced, and several processes may write the same one at once. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
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
