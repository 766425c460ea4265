"""A space of parameters: ranges and choices by name, and the map of ranges to the unit interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Range:
    """A range of numbers from `low` to `high`, both included. log: sampled in the logarithm; whole: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, place: float) -> float:
        """Return the value at `place` in [0, 1]."""
        if self.log:
            value = math.exp(math.log(self.low) + place * math.log(self.high / self.low))
        else:
            value = self.low + place * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def place(self, value: float) -> float:
        """Return the place of a value in [0, 1]."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice among some texts, numbers or booleans."""

    options: tuple[Any, ...]


Space = dict[str, Range | Choice]


def inside(space: Space, params: Params) -> bool:
    """Tell whether `params` has a value of the space for each name of the space."""
    return all(
        name in params
        and (
            params[name] in part.options
            if isinstance(part, Choice)
            else isinstance(params[name], int | float) and part.low <= params[name] <= part.high
        )
        for name, part in space.items()
    )
