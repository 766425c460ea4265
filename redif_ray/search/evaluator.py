"""The evaluator, one actor between trials and workers, which splits work into work units and caches their results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.exceptions import ObjectLostError, RayError

from redif_ray.config import Config
from redif_ray.coordinator.pool import Pool
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Times
from redif_ray.evaluation.seen import joined, joined_terms
from redif_ray.faults import ATTEMPTS
from redif_ray.planning.rounds import RoundPlan, reference_units
from redif_ray.search.terms import Terms, score
from redif_ray.types import Seen, WorkUnit
from redif_ray.workers.actors import RewardActor

SOON, LATER = (0, 0), (1, 0)  # urgency of a call in the pool


class SearchActor(RewardActor):
    """A search worker in a process of its own."""

    source = "redif_ray.search.worker:SearchWorker"

    def terms(self, *arguments: Any) -> Any:
        return self._worker.terms(*arguments)

    def see_along(self, *arguments: Any) -> Any:
        return self._worker.see_along(*arguments)

    def costs(self, *arguments: Any) -> Any:
        return self._worker.costs(*arguments)

    def descend(self, *arguments: Any) -> Any:
        return self._worker.descend(*arguments)


class Evaluator:
    """An actor that computes targets, reward terms and images of the bank and of held-out noises on its workers."""

    def __init__(self, config: Config, conditions: Conditions, workers: list[Any]) -> None:
        self.config, self.lost = config, 0
        self.pool = Pool("search", workers, self._lost, least=config.reward.min_workers or 1)
        self.plan, search = RoundPlan(config, conditions), config.search
        self.bank = self.plan.deploy(Stream.SEARCH, search.rungs[-1], size=search.unit_noises)
        self.held_out = self.plan.deploy(Stream.HELD_OUT, config.evaluation.held_out)
        self.others = reference_units(self.plan, config.evaluation.held_out)
        self.known: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def scores(self, times: Times, rung: int, weights: dict[str, float]) -> float:
        """Return the objective on the first `rung` noises of the bank; lower is better."""
        return score(await self.bank_terms(times, rung), weights, self.config.search.frechet.weight)

    async def bank_terms(self, times: Times, rung: int) -> Terms:
        """Return the terms, as `SearchWorker.terms` gives them, of the first `rung` noises of the bank."""
        units = self.bank[: rung // self.config.search.unit_noises]
        return joined_terms(await asyncio.gather(*(self._unit(unit, times) for unit in units)))

    async def seen(self, times: Times | None) -> Seen:
        """Return measurements of the held-out images along `times`; None: of the teacher's images."""

        async def one(unit: WorkUnit) -> Any:
            if times is None:
                return await self._call(LATER, "see", unit, unit)
            return await self._call(LATER, "see_along", unit, times)

        return joined(await asyncio.gather(*(one(unit) for unit in self.held_out)))

    async def reference(self) -> list[Any]:
        """Return the features of the reference with which the judge compares, by work unit."""
        return list(await asyncio.gather(*(self._call(LATER, "reference", unit) for unit in self.others)))

    async def held_out_conditions(self) -> list[Any]:
        return [c for unit in self.held_out for c in unit.conditions]

    async def costs(self) -> np.ndarray:
        """Return GITS's cost matrix on the first rung of the bank, float64 [M + 1, M + 1]."""
        units = self.bank[: self.config.search.rungs[0] // self.config.search.unit_noises]
        return np.mean(await asyncio.gather(*(self._call(SOON, "costs", unit) for unit in units)), axis=0)

    async def descend(self, base: Sequence[float], weights: dict[str, float]) -> list[Times]:
        """Return the candidates of `SearchWorker.descend` from `base`, timesteps [N], fitted on the whole bank."""
        groups = tuple(g for unit in self.bank for g in unit.groups)
        conditions = tuple(c for unit in self.bank for c in unit.conditions)
        whole = WorkUnit(0, 0, "deploy", Stream.SEARCH, groups, conditions)
        targets = np.concatenate([await (await self._target(unit)) for unit in self.bank])
        candidates: list[Times] = await self._call(LATER, "descend", whole, tuple(base), targets, weights)
        return candidates

    async def status(self) -> dict[str, Any]:
        """Return busy seconds and calls of each worker, and how often a worker was lost."""
        return {"busy": dict(self.pool.busy), "calls": dict(self.pool.units), "lost": self.lost}

    def _lost(self, _: str) -> None:
        self.lost += 1

    async def _unit(self, unit: WorkUnit, times: Times) -> Terms:
        """Return the terms of a work unit, cached by schedule, because discrete levels make many proposals equal."""
        key = (unit.stream, unit.index, times)
        if key not in self.known:
            self.known[key] = asyncio.ensure_future(self._scored(unit, times))
        terms: Terms = await asyncio.shield(self.known[key])
        return terms

    async def _scored(self, unit: WorkUnit, times: Times) -> Terms:
        """Compute the terms of a work unit, again if they or the teacher's images are lost with a node.

        Raises RayError after `ATTEMPTS` losses.
        """
        for _ in range(ATTEMPTS):
            try:
                terms: Terms = await self._call(SOON, "terms", unit, times, await self._target(unit))
                return terms
            except ObjectLostError:
                self.known.pop((unit.stream, unit.index), None)
        raise RayError(f"work unit {unit.index} of {unit.stream.name} was lost {ATTEMPTS} times; check the nodes")

    async def _target(self, unit: WorkUnit) -> Any:
        """Return a reference to the teacher's images of a work unit."""
        key = (unit.stream, unit.index)
        if key not in self.known:
            self.known[key] = asyncio.ensure_future(self.pool.call(SOON, "targets", unit))
        _, reference = await asyncio.shield(self.known[key])
        return reference

    async def _call(self, urgency: tuple[int, int], method: str, *arguments: Any) -> Any:
        _, reference = await self.pool.call(urgency, method, *arguments)
        return await reference
