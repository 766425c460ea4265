"""Workers beyond those that a run starts with, which join and leave with the nodes that have room for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from redif_ray.faults import cause

log = logging.getLogger(__name__)
ANSWER_SECONDS = 2


class Growth:
    """The driver's side of the extra workers: requests them from Ray and reports them to the coordinator.

    The extra workers must not take resources from the learner. So they are requested once the learner has its place,
    and killed where a restarted learner finds no room. Until Ray has room for them, an autoscaler sees them as demand.

    make: creates the actors and returns them by name; None if the run has no extra workers.
    """

    def __init__(self, make: Callable[[], dict[str, Any]] | None, coordinator: Any) -> None:
        self.make, self.coordinator = make, coordinator
        self.actors: dict[str, Any] = {}
        self.coming: dict[Any, str] = {}  # names of the workers that are not ready yet, by the reference to `ready`
        self.report: Any = None  # the reference to the coordinator's answer to the last report

    def start(self) -> None:
        """Request the extra workers, unless they are requested already."""
        if self.make is not None and not self.actors:
            self.actors = self.make()
            self.coming = {actor.ready.remote(): name for name, actor in self.actors.items()}

    def stop(self) -> None:
        """Kill the extra workers."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors, self.coming = {}, {}
        if self.report is not None:  # Ray prints a warning if the coordinator ends before it answers
            ray.wait([self.report], timeout=ANSWER_SECONDS)

    def look_after(self) -> None:
        """Start or stop the workers as the learner's place asks for, and report them. Call repeatedly; returns at once.

        Each answer of the coordinator is followed by a new report, since a restarted coordinator knows no workers.
        """
        if self.make is None:
            return
        if self.report is None or _done([self.report]):
            placed = None if self.report is None else ray.get(self.report)
            if placed:
                self.start()
            elif placed is False and self.actors:
                log.warning(
                    "the learner finds no room; %d workers that joined later are stopped for it", len(self.actors)
                )
                self.stop()
            self.report = self.coordinator.grown.remote(self.actors)
        for answer in _done(list(self.coming)):
            self._came(answer, self.coming.pop(answer))

    def _came(self, answer: Any, name: str) -> None:
        try:
            ray.get(answer)
        except ActorUnavailableError:  # its node was lost while the worker started; Ray restarts it
            self.coming[self.actors[name].ready.remote()] = name
        except RayError as error:
            log.warning("%s cannot join: %s", name, cause(error))


def _done(answers: list[Any]) -> list[Any]:
    done: list[Any] = ray.wait(answers, num_returns=len(answers), timeout=0)[0] if answers else []
    return done
