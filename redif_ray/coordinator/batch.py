"""A batch of work units that are computed concurrently, each of which can be computed again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Coroutine
from typing import Any

from redif_ray.types import Meta, WorkUnit

Parts = tuple[tuple[Meta, ...], tuple[Any, ...]]  # metas of a work unit, and references to its products
Make = Callable[[WorkUnit], Coroutine[Any, Any, Parts]]


class Batch:
    """The work units of a round or of a deployment, in progress or done.

    make: coroutine function that computes one unit. at_once: number of units in progress, which bounds their
    intermediate products in the object store; None: all.
    """

    def __init__(self, units: list[WorkUnit], make: Make, at_once: int | None = None) -> None:
        self.units, self.make = units, make
        self.room = asyncio.Semaphore(at_once or len(units))
        self.parts = [asyncio.ensure_future(self._made(unit)) for unit in units]
        self.whole = asyncio.ensure_future(self._gather(time.monotonic()))

    async def _gather(self, started: float) -> tuple[list[Parts], float]:
        results = await asyncio.gather(*self.parts)
        return list(results), time.monotonic() - started

    async def _made(self, unit: WorkUnit) -> Parts:
        async with self.room:
            return await self.make(unit)

    @property
    def failed(self) -> bool:
        return self.whole.done() and self.whole.exception() is not None

    def holding(self, lost: Container[str]) -> list[int]:
        """Return the indices of units that have a reference whose id is among `lost`."""
        done = [(i, part.result()[1]) for i, part in enumerate(self.parts) if part.done() and not part.exception()]
        return [i for i, references in done if any(reference.hex() in lost for reference in references)]

    def again(self, indices: list[int]) -> None:
        """Compute the units `indices` again."""
        for index in indices:
            self.parts[index] = asyncio.ensure_future(self._made(self.units[index]))
        self.whole = asyncio.ensure_future(self._gather(time.monotonic()))
