"""Other processes of this machine: how much they ask of it, and how to share its cores with them.

The threads of one process wait for each other at every operation. By default OpenMP's threads keep their cores busy
meanwhile, some 300,000 times around a loop. Where other processes want these cores, the thread that is waited for is
not running, and both are slow: beside eight other processes on two cores, training on two threads took four times as
long as on one, and seven times the processor time. Threads that sleep after 1,000 turns do not, and cost next to
nothing on an idle machine. `benchmarks/two_threads.py` measures it.
"""

from __future__ import annotations

import os

import psutil

MUCH = 1.5  # processes that want a core, for each core
TAKEN, LOOK_SECONDS = 75, 0.5  # per cent of all cores, and the time for which they are looked at
SHORT_WAITS = {"GOMP_SPINCOUNT": "1000"}  # read when torch is imported; a user's own value goes before


def share_cores() -> None:
    """Let waiting threads of this process, and of those that it starts, soon sleep; call before torch loads."""
    for name, value in SHORT_WAITS.items():
        os.environ.setdefault(name, value)


def busy() -> str:
    """Return a sentence where other processes keep this machine's cores busy, or an empty text.

    The load is that of the last minute, so it counts what has just ended; the cores are looked at besides.
    """
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= MUCH * cores or psutil.cpu_percent(LOOK_SECONDS) < TAKEN:
        return ""
    return (
        f"other processes are at work on this machine (a load of {load:.0f} on {cores} cores), so all takes longer "
        "than alone, and estimates vary"
    )
