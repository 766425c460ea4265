"""The base of a sweep's plans. A trial is a run, or the part of one from a generation to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from redif_ray.trials import plan


@dataclass(frozen=True, slots=True)
class Slot:
    """Trial `number`: the `index`-th of its stage, in `generation`."""

    number: int
    stage: str
    index: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What a trial does: the run folder `name`, with `settings` on top of the recipe, up to round `until`.

    source: the run folder whose state it begins with; None: from the start. rungs: rounds after which it is scored,
    `until` the last of them. finish: whether the student is evaluated and exported in the end.
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
    """A trial that is over. scores: the sweep's metric after each rung; error: why it failed."""

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
    """A plan of runs."""

    def run(self, slot: Slot) -> Run:
        """What a trial does; see `proposal`."""
        raise NotImplementedError

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
        """Trials that did not fail, by number."""
        return [trial for _, trial in sorted(self.trials.items()) if trial.error is None]
