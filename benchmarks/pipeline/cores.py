"""CPU seconds of a run while it trains: of its workers and learner, and of all that Ray runs beside them."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import psutil

WORK = {"RayTrainWorker": "learner", "RolloutActor": "rollout", "RewardActor": "reward"}  # by class
TITLES = tuple(f"ray::{kind}" for kind in WORK)


class Cores:
    """CPU seconds, user's and system's, of this process and those below it; to be looked at again and again."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []  # time, seconds of work so far, of others
        self.used: dict[psutil.Process, tuple[float, bool]] = {}  # seconds of each, and whether they are of work

    def look(self) -> None:
        now, me = time.time(), psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.Error):  # it has ended; what it used stays
                used, title = process.cpu_times(), " ".join(process.cmdline())
                self.used[process] = used.user + used.system, title.startswith(TITLES)
        work, others = (sum(used for used, kind in self.used.values() if kind is wanted) for wanted in (True, False))
        self.seen.append((now, work, others))

    def between(self, start: float, end: float) -> tuple[float, float]:
        """CPU seconds of work and of others from `start` to `end`, seconds since the epoch."""
        at, work, others = np.array(self.seen).T
        (work_0, work_1), (others_0, others_1) = (np.interp([start, end], at, seconds) for seconds in (work, others))
        return float(work_1 - work_0), float(others_1 - others_0)
