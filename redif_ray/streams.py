"""Standard streams that a program outlives: a reader that leaves, a terminal that closes or a full disk is no error.

`redif distill ... | head -1` closes the output of a run that has hours of work before it. What cannot be printed is
left out, and the run goes on.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO


class Lasting(io.FileIO):
    """A file descriptor that takes all that is written; what fails is left out."""

    def write(self, data: Any) -> int:
        """Return the number of bytes that were taken. Waits where the descriptor does not block and is full."""
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            return memoryview(data).nbytes
        return int(count)


def keep_streams() -> None:
    """Put streams that last in the place of stdout and stderr, and the null device where a descriptor is closed.

    Without the latter the next file that is opened, such as a checkpoint, would get what is printed. A stream that the
    caller has put in the place of this process's own stays.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(2, sys.stderr)


def _lasting(number: int, before: TextIO | None) -> TextIO:
    """Return a text stream to a descriptor, in the encoding of the stream before it; it shows every character."""
    encoding = None if before is None else before.encoding
    buffer = io.BufferedWriter(Lasting(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)
