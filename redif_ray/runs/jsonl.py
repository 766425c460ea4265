"""Files of JSON lines, each written whole or not at all, even where the writer is killed or the disk is full."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from redif_ray.errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file, [] without one. A last line that was cut short by a kill is left out.

    Raises UserError for a line that is not JSON.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); delete the line and try again") from error
    return rows


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append a line for each row: all rows or, where the disk does not take them, none. Raises UserError.

    A last line that was cut short is removed first.
    """
    unwritten = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode())
    try:
        with path.open("ab+", buffering=0) as file:  # closing the file would write a buffer again
            end = _complete(file)
            try:
                file.truncate(end)
                while unwritten:
                    unwritten = unwritten[file.write(unwritten) :]
                os.fsync(file.fileno())  # some file systems report only here that they are full
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; free space and try again") from error


def _complete(file: BinaryIO) -> int:
    """Return the length of the complete lines of a file, in bytes."""
    length = file.seek(0, os.SEEK_END)
    if not length:
        return 0
    file.seek(length - 1)
    if file.read(1) == b"\n":
        return length
    file.seek(0)
    return file.read().rfind(b"\n") + 1
