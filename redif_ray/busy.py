"""The load of this machine by other processes, which a user would otherwise take for the slowness of a run."""

from __future__ import annotations

import os

MUCH = 1.5  # processes that want a core, for each core


def busy() -> str:
    """Return a sentence where other processes keep this machine's cores busy, or an empty text."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= MUCH * cores:
        return ""
    return (
        f"other processes are at work on this machine (a load of {load:.0f} on {cores} cores), so all takes longer "
        "than alone, and estimates vary"
    )
