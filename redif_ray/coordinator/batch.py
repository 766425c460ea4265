"""Work units that are made together, each of which can be made again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Coroutine
from typing import Any

from redif_ray.types import Meta, WorkUnit

Parts = tuple[tuple[Meta, ...], tuple[Any, ...]]  # metas of a work unit, and references to what was made of it
Make = Callable[[WorkUnit], Coroutine[Any, Any, Parts]]


class Batch:
    """A round's work units, or a deployment's, at work or done."""

    def __init__(self, units: list[WorkUnit], make: Make) -> None:
        self.units, self.make = units, make
        self.parts = [asyncio.ensure_future(make(unit)) for unit in units]
        self.whole = asyncio.ensure_future(self._gather(time.monotonic()))

    async def _gather(self, started: float) -> tuple[list[Parts], float]:
        results = await asyncio.gather(*self.parts)
        return list(results), time.monotonic() - started

    @property
    def failed(self) -> bool:
        return self.whole.done() and self.whole.exception() is not None

    def holding(self, lost: Container[str]) -> list[int]:
        """Work units whose references, by their ids, are among `lost`."""
        made = [(i, part.result()[1]) for i, part in enumerate(self.parts) if part.done() and not part.exception()]
        return [i for i, references in made if any(reference.hex() in lost for reference in references)]

    def again(self, indices: list[int]) -> None:
        for index in indices:
            self.parts[index] = asyncio.ensure_future(self.make(self.units[index]))
        self.whole = asyncio.ensure_future(self._gather(time.monotonic()))
