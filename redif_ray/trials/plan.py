"""The plan of a set of trials: the list of trials, their proposals and their cuts, without Ray or a network.

Trials are numbered and run in stages. The proposal of trial n, and whether trial n continues after a score, depend only
on the trials up to n - `concurrent` and on finished stages, never on running trials, however many trials run at once
and whatever runs them. So a plan that is interrupted and resumed gives the same trials.
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
    """A finished trial. error: why the trial failed; None: success."""

    @property
    def number(self) -> int: ...

    @property
    def error(self) -> str | None: ...

    def row(self) -> dict[str, Any]:
        """Return the trial as a row of the journal."""
        ...


S = TypeVar("S", bound=Slot)
T = TypeVar("T", bound=Trial)


class Plan(ABC, Generic[S, T]):
    """The base of plans. Trials are recorded in any order.

    slots: all slots in the order in which they start, stage after stage; concurrent: the most trials that run at once.
    """

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
        """Return the number below which all trials are known to `slot`."""
        return max(self._first[slot.stage], slot.number - self.concurrent + 1)

    def ready(self, slot: S) -> bool:
        """Tell whether all trials that are known to `slot` are recorded."""
        return all(number in self.trials for number in range(self.known_before(slot)))

    @abstractmethod
    def proposal(self, slot: S) -> dict[str, Any]:
        """Return the settings that are sent to the process of a trial. The slot must be ready."""

    @abstractmethod
    def goes_on(self, slot: S, scores: list[float]) -> bool:
        """Tell whether a trial continues after the last of `scores`."""

    @abstractmethod
    def over(self, slot: S, proposal: Mapping[str, Any], scores: list[float], error: str | None) -> T:
        """Return the finished trial of a slot."""

    @abstractmethod
    def restored(self, row: Mapping[str, Any]) -> T:
        """Return a trial from its row of the journal."""
