"""Ctrl-C and SIGTERM: noted when they come, acted upon where it is safe.

Python raises KeyboardInterrupt between any two instructions of the main thread. In the middle of Ray's or logging's own
code that can leave a lock taken for good, and the run hangs. So the first signal only sets a flag.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redif_ray.errors import Notice

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Notice):
    """The run was asked to stop; what it did is kept and it can be resumed.

    exit_code: 128 and the signal's number, 130 or 143, as shells say it and schedulers that start a job again take it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Whether the user asked to stop, and by which signal. after: what they are told to do then."""

    def __init__(self, after: str = "continue with --resume") -> None:
        self.requested, self.number, self.after = False, int(signal.SIGINT), after

    def check(self) -> None:
        """Raise Interrupted if so."""
        if self.requested:
            raise self.interrupted(f"stopped; {self.after}")

    def interrupted(self, message: str) -> Interrupted:
        """What a command that was asked to stop ends with."""
        return Interrupted(message, self.number)

    def listen(self) -> None:
        """Take the signals: the first is a request, the second a KeyboardInterrupt at once. In the main thread only."""
        if threading.current_thread() is threading.main_thread() and not self.requested:
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        self.requested, self.number = True, number
        os.write(2, b"\nstopping where it is safe; once more to leave at once\n")
        signal.signal(number, signal.default_int_handler)


@contextmanager
def stop_requests(after: str = "continue with --resume") -> Iterator[StopRequest]:
    """Listen for the length of a block. after: see StopRequest."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest(after)
    stop.listen()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler)
