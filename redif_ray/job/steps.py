"""The steps of an evaluation, told as they go on and as they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import ray

from redif_ray.job.progress import Progress

POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an evaluation. cost: in network calls on one image. units: work units that reward workers do for it."""

    cost: float
    units: int


def cost(steps: Mapping[str, Step]) -> float:
    """Return the cost of all steps, in network calls on one image."""
    return sum(step.cost for step in steps.values())


class Steps:
    """The steps of an evaluation, in their order; a thread watches how many work units of the present one are done.

    steps: {what is measured: its cost}. units: returns the number of work units that were done so far, over all steps.
    """

    def __init__(self, steps: Mapping[str, Step], units: Callable[[], int], progress: Progress) -> None:
        self.left, self.units, self.progress = dict(steps), units, progress
        self.total = cost(steps)
        self.passed = 0.0
        self.began, self.before = time.monotonic(), units()
        self.over, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._watch, name="steps", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def done(self, what: str) -> None:
        """Tell that the step `what`, and all before it, are over."""
        units = self.units()
        with self.lock:
            while (name := next(iter(self.left))) != what:
                self.passed += self.left.pop(name).cost
            self.passed += self.left.pop(what).cost
            now = time.monotonic()
            self.progress.at(self.passed / self.total, f"  {what}: {now - self.began:.0f} s", line=True)
            self.began, self.before = now, units

    def _watch(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                units = self.units()
            except ray.exceptions.RayError:  # the coordinator starts again
                continue
            with self.lock:
                self._look(units)

    def _look(self, units: int) -> None:
        if self.over.is_set() or not self.left:
            return
        what, step = next(iter(self.left.items()))
        done = min(step.units, max(0, units - self.before))
        share = (self.passed + step.cost * done / max(1, step.units)) / self.total
        self.progress.at(share, f"  {what}: {done} of {step.units} work units")


def units_done(coordinator: Any) -> int:
    """Return the number of work units that the reward workers have done since the coordinator started."""
    status = ray.get(coordinator.status.remote())
    return sum(number for worker, number in status["units"].items() if worker.startswith("reward"))
