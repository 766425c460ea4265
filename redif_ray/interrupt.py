"""Ctrl-C, SIGTERM and SIGHUP: a handler notes the signal, and the program acts on it where that is safe.

Python raises KeyboardInterrupt between any two instructions of the main thread. In the middle of Ray's or logging's own
code that can leave a lock taken for good, and the run hangs. So the first signal only sets a flag.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redif_ray.errors import Notice

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_noted: int | None = None


def noted() -> int | None:
    """Return the number of the signal by which the job of this process was asked to stop, or None where it was not."""
    return _noted


class Interrupted(Notice):
    """The run was asked to stop; its work so far is kept, and the run can be resumed.

    exit_code: 128 + the signal's number, so 129, 130 or 143, by which shells and schedulers know the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """A flag that says whether the user asked to stop, and by which signal.

    after: the advice that ends the message, such as how to continue.
    """

    def __init__(self, after: str = "continue with --resume") -> None:
        self.requested, self.number, self.after = False, int(signal.SIGINT), after

    def check(self) -> None:
        """Raise Interrupted if the user asked to stop."""
        if self.requested:
            raise self.interrupted(f"stopped; {self.after}")

    def interrupted(self, message: str) -> Interrupted:
        """Return the exception, with `message`, that ends a command which was asked to stop."""
        return Interrupted(message, self.number)

    def listen(self) -> None:
        """Install the signal handlers: the first signal is a request to stop, the second a KeyboardInterrupt at once.

        Outside the main thread, which alone may install handlers, and after a request, this does nothing. A SIGHUP that
        is ignored, as below nohup, stays so.
        """
        if threading.current_thread() is threading.main_thread() and not self.requested:
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        global _noted
        _noted = number
        self.requested, self.number = True, number
        with suppress(OSError):  # the terminal may be gone, which is what SIGHUP says
            os.write(2, b"\nstopping where it is safe; repeat the signal to leave at once\n")
        signal.signal(number, signal.default_int_handler)


@contextmanager
def stop_requests(after: str = "continue with --resume") -> Iterator[StopRequest]:
    """Listen for signals while the block runs, then restore the previous handlers. after: see StopRequest."""
    global _noted
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    if not any(isinstance(getattr(handler, "__self__", None), StopRequest) for handler in previous.values()):
        _noted = None  # this block is in no other one, so a signal that an earlier one got is over
    stop = StopRequest(after)
    stop.listen()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler)
