"""CPU seconds of a run while it trains: of its workers and learner, and of all that Ray runs beside them."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import psutil

WORK = ("ray::RayTrainWorker", "ray::StudentRolloutWorker", "ray::TeacherRewardWorker")


class Cores:
    """CPU seconds, user's and system's, of this process and those below it; to be looked at again and again."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []  # time, seconds of work, of others

    def look(self) -> None:
        now, work, others = time.time(), 0.0, 0.0
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.Error):  # it has ended
                used, title = process.cpu_times(), " ".join(process.cmdline())
                if title.startswith(WORK):
                    work += used.user + used.system
                else:
                    others += used.user + used.system
        self.seen.append((now, work, others))

    def between(self, start: float, end: float) -> tuple[float, float]:
        """CPU seconds of work and of others from `start` to `end`, seconds since the epoch."""
        at, work, others = np.array(self.seen).T
        (work_0, work_1), (others_0, others_1) = (np.interp([start, end], at, seconds) for seconds in (work, others))
        return float(work_1 - work_0), float(others_1 - others_0)
