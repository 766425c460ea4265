"""Files of rows: JSON lines, each there whole or not at all, whatever was killed or ran full while it was written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from redif_ray.errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file; a last line that was cut short by a kill is left out, a file need not be there."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no JSON ({error}); take that line out and try again") from error
    return rows


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each row, all of them or, where the disk does not take them, none. Raises UserError.

    They come after the last complete line: one that was cut short goes.
    """
    left = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode())
    try:
        with path.open("ab+", buffering=0) as file:  # a buffer would be written again when the file is closed
            end = _complete(file)
            try:
                file.truncate(end)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())  # some file systems say only here that they are full
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; free space and try again") from error


def _complete(file: BinaryIO) -> int:
    """The length of the complete lines of a file."""
    length = file.seek(0, os.SEEK_END)
    if not length:
        return 0
    file.seek(length - 1)
    if file.read(1) == b"\n":
        return length
    file.seek(0)
    return file.read().rfind(b"\n") + 1
