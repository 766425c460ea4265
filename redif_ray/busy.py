"""Other processes of this machine: how much they ask of it, and how to share its cores with them.

The threads of one process wait for each other at every operation. By default OpenMP's threads keep their cores busy
meanwhile, some 300,000 times around a loop. Where other processes want these cores, the thread that is waited for is
not running, and both are slow: on two cores with a load of 30, training with two threads took 4.5 times as long as
with threads that sleep, and four times the processor time. `benchmarks/two_threads.py` measures it.
"""

from __future__ import annotations

import os

MUCH = 1.5  # processes that want a core, for each core
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}  # read when torch is imported; a user's own value goes before


def share_cores() -> None:
    """Let the threads of this process, and of those that it starts, sleep while they wait; call before torch loads."""
    for name, value in SLEEPING_THREADS.items():
        os.environ.setdefault(name, value)


def busy() -> str:
    """Return a sentence where other processes keep this machine's cores busy, or an empty text."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= MUCH * cores:
        return ""
    return (
        f"other processes are at work on this machine (a load of {load:.0f} on {cores} cores), so all takes longer "
        "than alone, and estimates vary"
    )
