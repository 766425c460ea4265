"""The plan of a set of trials: which there are, what each tries, which go on; no Ray, no network.

Trials are numbered, and run in stages. What trial n tries, and whether it goes on after a score, depends on the trials
before n - `concurrent` and on whole stages that are over: on nothing that is still running, however many trials run at
once and whoever runs them. So a plan that was cut short goes on as if it had not been.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar


class Slot(Protocol):
    """A place for a trial, known before it runs."""

    @property
    def number(self) -> int: ...

    @property
    def stage(self) -> str: ...


class Trial(Protocol):
    """A trial that is over. error: why it failed."""

    @property
    def number(self) -> int: ...

    @property
    def error(self) -> str | None: ...

    def row(self) -> dict[str, Any]:
        """As a line of the journal."""
        ...


S = TypeVar("S", bound=Slot)
T = TypeVar("T", bound=Trial)


class Plan(ABC, Generic[S, T]):
    """slots: in the order in which they start; a stage's stand together. Trials are recorded in any order."""

    def __init__(self, slots: Sequence[S], concurrent: int) -> None:
        self.slots, self.concurrent = list(slots), concurrent
        self.trials: dict[int, T] = {}
        self._first: dict[str, int] = {}
        for slot in self.slots:
            self._first.setdefault(slot.stage, slot.number)

    def record(self, trial: T) -> None:
        self.trials[trial.number] = trial

    def missing(self) -> list[S]:
        return [slot for slot in self.slots if slot.number not in self.trials]

    def known_before(self, slot: S) -> int:
        """All trials below this number are known to `slot`."""
        return max(self._first[slot.stage], slot.number - self.concurrent + 1)

    def ready(self, slot: S) -> bool:
        """Whether all that the trial may know is there."""
        return all(number in self.trials for number in range(self.known_before(slot)))

    @abstractmethod
    def proposal(self, slot: S) -> dict[str, Any]:
        """What a trial tries, as its process is told; asked once it is ready."""

    @abstractmethod
    def goes_on(self, slot: S, scores: list[float]) -> bool:
        """Whether a trial goes on after the last of these scores."""

    @abstractmethod
    def over(self, slot: S, proposal: Mapping[str, Any], scores: list[float], error: str | None) -> T:
        """The trial that was a slot."""

    @abstractmethod
    def restored(self, row: Mapping[str, Any]) -> T:
        """A trial from its line of the journal."""
