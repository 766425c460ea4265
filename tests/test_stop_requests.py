"""Signals: the first is a request to stop, whose exit code names it; nohup keeps SIGHUP away."""

from __future__ import annotations

import os
import signal

import pytest

from redif_ray.interrupt import Interrupted, noted, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_request_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="stopped; continue with --resume") as told:
            stop.check()
        assert noted() == number and told.value.exit_code == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before and noted() == number
    with stop_requests():
        assert noted() is None


def test_a_terminal_that_is_gone_is_not_written_to() -> None:
    kept, end = os.dup(2), os.pipe()
    os.close(end[0])
    os.dup2(end[1], 2)
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested
    finally:
        os.dup2(kept, 2)
        for number in (kept, end[1]):
            os.close(number)


def test_below_nohup_sighup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
