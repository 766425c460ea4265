"""Who works in a run folder, for those who only look: they must not try its lock, and may be on another machine.

The lock file names the process that holds the lock, which touches it every few seconds and empties it when it leaves.
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
SILENT_SECONDS = 60.0  # after which a process on another machine counts as gone


@dataclass(frozen=True, slots=True)
class Holder:
    """since: seconds since 1970."""

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """The lock of a folder, held until it is closed. Raises BlockingIOError where another process has it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK).open("a")  # not "w": it may be another's
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
    """The process that works in a folder, or died in it, and whether it lives; None where the last one left it."""
    path = folder / LOCK
    try:
        found, touched = Holder(**json.loads(path.read_text())), path.stat().st_mtime
    except (OSError, ValueError, TypeError):  # none, or one that comes or goes just now
        return None
    if found.host == socket.gethostname():
        try:
            lives = psutil.Process(found.pid).create_time() <= found.since + 1
        except psutil.NoSuchProcess:
            lives = False
        return found, lives
    return found, time.time() - touched < SILENT_SECONDS
