"""The lock of a run folder, and its holder for readers, which must not try the lock and may run on another machine.

The lock file names the process that holds the lock. This process touches the file every few seconds and empties it
when it leaves.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

LOCK = ".lock"
TOUCH_SECONDS = 10.0
SILENT_SECONDS = 60.0  # a process on another machine that did not touch the file for so long counts as gone


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock. since: time at which it took the lock, in seconds since 1970."""

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """The lock of a folder, held until `close`. Construction raises BlockingIOError if another process holds it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK).open("a")  # not "w", which would empty the file of another holder
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(0)
            self._file.write(json.dumps(asdict(Holder(socket.gethostname(), os.getpid(), time.time()))))
            self._file.flush()
        except BaseException:
            self._file.close()
            raise
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="lock", daemon=True)
        self._thread.start()

    def _touch(self) -> None:
        while not self._left.wait(TOUCH_SECONDS):
            os.utime(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self._left.set()
            self._thread.join()
            self._file.truncate(0)
            self._file.close()


def holder(folder: Path) -> tuple[Holder, bool] | None:
    """Return the process that took the lock and whether it is alive, or None where the last holder released it."""
    path = folder / LOCK
    try:
        process, touched = Holder(**json.loads(path.read_text())), path.stat().st_mtime
    except (OSError, ValueError, TypeError):  # no holder, or the file is being written
        return None
    if process.host == socket.gethostname():
        try:  # a process that is younger than the lock has only the same number
            alive = psutil.Process(process.pid).create_time() <= process.since + 1
        except psutil.NoSuchProcess:
            alive = False
        return process, alive
    return process, time.time() - touched < SILENT_SECONDS
