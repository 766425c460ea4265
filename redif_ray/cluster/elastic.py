"""Workers beyond those that a run starts with, which come and go with the nodes that have room for them."""

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
    """Has Ray look for room for them, and tells the coordinator of them again and again, for it may be lost.

    They are asked for once the learner has its place, and given up where one that was lost finds none: they must not
    take the room of what a run cannot do without. Until Ray has room for them they are demand that an autoscaler sees.

    make: the actors, by their names; None where there are none to come.
    """

    def __init__(self, make: Callable[[], dict[str, Any]] | None, coordinator: Any) -> None:
        self.make, self.coordinator = make, coordinator
        self.actors: dict[str, Any] = {}
        self.coming: dict[Any, str] = {}  # by the answer that they are ready: their names
        self.told: Any = None  # the coordinator's answer

    def start(self) -> None:
        if self.make is not None and not self.actors:
            self.actors = self.make()
            self.coming = {actor.ready.remote(): name for name, actor in self.actors.items()}

    def stop(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors, self.coming = {}, {}
        if self.told is not None:  # a coordinator that goes before it answers is a warning on the terminal
            ray.wait([self.told], timeout=ANSWER_SECONDS)

    def look_after(self) -> None:
        """To be called again and again; returns at once."""
        if self.make is None:
            return
        if self.told is None or _done([self.told]):
            placed = None if self.told is None else ray.get(self.told)
            if placed:
                self.start()
            elif placed is False and self.actors:
                log.warning("the learner finds no room; %d workers that joined later leave it theirs", len(self.actors))
                self.stop()
            self.told = self.coordinator.grown.remote(self.actors)
        for answer in _done(list(self.coming)):
            self._came(answer, self.coming.pop(answer))

    def _came(self, answer: Any, name: str) -> None:
        try:
            ray.get(answer)
        except ActorUnavailableError:  # its node went as it came
            self.coming[self.actors[name].ready.remote()] = name
        except RayError as error:
            log.warning("%s cannot join: %s", name, cause(error))


def _done(answers: list[Any]) -> list[Any]:
    done: list[Any] = ray.wait(answers, num_returns=len(answers), timeout=0)[0] if answers else []
    return done
