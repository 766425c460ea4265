"""The base of a sweep's plans. A trial is a run, or the part of a run between two generations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from redif_ray.trials import plan


@dataclass(frozen=True, slots=True)
class Slot:
    """The slot of trial `number`: number `index` of its stage, from 0, in `generation`."""

    number: int
    stage: str
    index: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """The task of a trial: to train the run `name`, with `settings` on top of the recipe, up to round `until`.

    source: name of the run whose state this run starts from; None: from the beginning. rungs: rounds after which the
    run is scored, the last of which is `until`. finish: evaluate and export the student at the end.
    """

    name: str
    seed: int
    settings: dict[str, Any]
    until: int
    rungs: tuple[int, ...]
    source: str | None = None
    finish: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial. scores: the sweep's metric after each rung; error: why the trial failed; None: success."""

    number: int
    stage: str
    index: int
    generation: int
    run: str
    seed: int
    settings: dict[str, Any]
    source: str | None
    scores: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def score(self) -> float:
        return self.scores[-1]

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Plan(plan.Plan[Slot, Trial]):
    """The base of plans whose trials are runs."""

    @abstractmethod
    def run(self, slot: Slot) -> Run:
        """Return the task of a trial. The slot must be ready."""

    def proposal(self, slot: Slot) -> dict[str, Any]:
        return asdict(self.run(slot))

    def goes_on(self, slot: Slot, scores: list[float]) -> bool:
        return False

    def over(self, slot: Slot, proposal: Mapping[str, Any], scores: list[float], error: str | None) -> Trial:
        return Trial(
            slot.number,
            slot.stage,
            slot.index,
            slot.generation,
            proposal["name"],
            proposal["seed"],
            dict(proposal["settings"]),
            proposal["source"],
            scores,
            error,
        )

    def restored(self, row: Mapping[str, Any]) -> Trial:
        return Trial(**row)

    def finished(self) -> list[Trial]:
        """Return the trials that did not fail, in order of their numbers."""
        return [trial for _, trial in sorted(self.trials.items()) if trial.error is None]
