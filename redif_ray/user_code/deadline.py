"""A time limit for a call of user code, which names the line where the code is."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redif_ray.user_code.errors import Late, UserCodeError, described

ADVICE = "half of pipeline.timeout_s; if it is only slow, raise pipeline.timeout_s"
AGAIN_SECONDS = 1.0  # between two interruptions of code that catches the first one


def time_limit(timeout_s: float) -> float:
    """Return the seconds that one call of user code may take: half of `pipeline.timeout_s`, when a worker is killed."""
    return timeout_s / 2


@contextmanager
def within(seconds: float, what: str = "it") -> Iterator[None]:
    """Raise UserCodeError, with the line where the code is, once the block has taken so many seconds.

    what: name of the code in the block, for the error.
    A signal interrupts Python code, sleeps and waits for locks and sockets. Code that does not come back to Python, and
    code outside of the main thread, where there are no signals, is not interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise Late

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, late)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    except Late as error:
        _, *lines = described(error).split("\n")
        raise UserCodeError("\n".join([f"{what} has not returned after {seconds:g} s, {ADVICE}", *lines])) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if left:  # another's timer, which goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)
