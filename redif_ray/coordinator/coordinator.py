"""The coordinator: hands out work units, gathers (meta, reference) pairs and answers the learner's ranks.

The coordinator awaits metas only; trajectories and images go from worker to learner through the object store. It draws
no random number and holds no state that (configuration, run folder) do not determine, so Ray may restart it: callers
that waited for a round ask again, and the driver repeats everything that it has to tell (`progress.py`).

While the learner updates on a round, the workers are at most `pipeline.staleness` rounds ahead of it, and the teacher's
images, which depend on no weights, one round more. Work of an earlier round always goes first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayError

from redif_ray.config import Config
from redif_ray.coordinator.batch import Batch, Make, Parts
from redif_ray.coordinator.pool import Pool, Urgency
from redif_ray.data.conditions import CONDITIONS, Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.faults import ATTEMPTS, RoundData, restarted
from redif_ray.methods import Deploy, phases_by_name
from redif_ray.planning.rounds import RoundPlan, reference_units, units_at_once
from redif_ray.runs.gauges import PoolGauges
from redif_ray.runs.timeline import Span, spans
from redif_ray.types import Meta, WorkUnit
from redif_ray.weights.store import learned_key, policy_key

ASKED: Urgency = (-1, 0)  # urgency of work that the learner or driver waits for, ahead of later rounds
WATCH_SECONDS = 1.0
PATIENCE_SECONDS = 60.0  # time for a lost learner to come back before later workers are removed to make room
log = logging.getLogger(__name__)


class Coordinator:
    """The actor between the learner, the driver and the workers of a run.

    folder: path of the run folder. handles: those of the weight store, the metrics writer, the rollout workers and the
    reward workers, pickled. captions: True where the teacher takes captions, so that reward workers encode those of a
    unit before it is rolled out.
    """

    def __init__(self, config: Config, folder: str, handles: bytes, captions: bool = False) -> None:
        self.weights, self.writer, rollout, reward = cloudpickle.loads(handles)
        self.config, self.captions = config, captions
        self.plan = RoundPlan(config, Conditions.from_json((Path(folder) / CONDITIONS).read_text()))
        self.phases = phases_by_name(config)
        timeout = config.pipeline.timeout_s
        self.rollout = Pool("rollout", rollout, self._lost, timeout, self._done, config.rollout.min_workers or 1)
        self.reward = Pool("reward", reward, self._lost, timeout, self._done, config.reward.min_workers or 1)
        self.at_once = units_at_once(config)
        self.gauges = PoolGauges(config.run.name)
        self.watching: asyncio.Task[None] | None = None
        self.spans: list[Span] = []  # work not yet reported to the writer
        self.rounds: dict[int, Batch] = {}
        self.references: dict[int, Batch] = {}  # features of reference images, by their number
        self.deployment: tuple[tuple[Any, ...], Batch] | None = None  # the last one, by name
        self.ahead: dict[tuple[int, int], asyncio.Future[tuple[Any, ...]]] = {}  # of `_ahead`, by round and unit
        self.blocks: WeakValueDictionary[tuple[int, ...], asyncio.Lock] = WeakValueDictionary()
        self.stopping = False
        self.calibration: dict[str, Any] | None = None
        self.begun = asyncio.Event()
        self.learning = False  # True once a learner has called, so its ranks have found room
        self.learner_gone: float | None = None  # monotonic time of the last learner loss; None while a learner is up
        if restarted():
            log.warning("the coordinator was lost and restarted; the learner asks for its rounds again")
            self._lost("coordinator")

    def _lost(self, what: str) -> None:
        self.writer.lost.remote(what)
        self.gauges.count(what)

    def _done(self, meta: Meta) -> None:
        self.spans += spans([meta])

    async def _watch(self) -> None:
        """Keep the gauges of the pools up to date."""
        while True:
            for pool in (self.rollout, self.reward):
                self.gauges.set(pool.role, pool.calls.qsize(), pool.in_flight, len(pool.here))
            await asyncio.sleep(WATCH_SECONDS)

    async def stop(self) -> None:
        """Ask the learner to checkpoint and leave at its next round."""
        self.stopping = True
        self.begun.set()

    async def begin(self, calibration: dict[str, Any]) -> bool:
        """Let the learner start, now that the workers are ready; return True if the learner is up.

        calibration: calibration of the rewards, for the learner.
        """
        if not self.begun.is_set():
            await self._make_room()
        self.calibration = calibration
        self.begun.set()
        return self.learning

    async def begun_with(self) -> dict[str, Any] | None:
        """Wait until the learner may start; return the calibration of the rewards, or None when the run is to stop."""
        self.learning, self.learner_gone = True, None
        await self.begun.wait()
        return None if self.stopping else self.calibration

    async def learner_lost(self) -> None:
        """Note that the learner was lost; Ray Train restarts its ranks where there is room."""
        self.learning, self.learner_gone = False, time.monotonic()

    async def grown(self, workers: dict[str, Any]) -> bool | None:
        """Add workers that came later, by name; return True if the learner has room.

        False: the learner was lost and has found no room for PATIENCE_SECONDS. None: it may still come.
        """
        for name, worker in workers.items():
            (self.rollout if name.startswith("rollout") else self.reward).join(worker)
        if self.learner_gone is not None and time.monotonic() - self.learner_gone > PATIENCE_SECONDS:
            return False
        return self.learning or None

    async def restart(self) -> None:
        """Forget all rounds, because a learner starts whose weights may differ from those of the learner before it."""
        self.rounds.clear()
        self.ahead.clear()

    async def round_for(self, round: int, rank: int, world: int, lost: tuple[str, ...] = ()) -> RoundData | None:
        """Return rank `rank`'s part of a round, made with the weights that the plan says; None when the run is to stop.

        Repeated calls get the same answer until the next round is asked for. A rank asks for it after all ranks have
        fetched this one, so references to earlier rounds are let go, and to deployments.
        lost: ids of references of an earlier answer that could not be fetched; their units are computed again.
        """
        if self.stopping:
            return None
        self.learning = self.learner_gone is None
        for ahead in range(round, min(round + self.config.pipeline.staleness + 1, self.plan.rounds)):
            if ahead not in self.rounds:
                version = self.plan.version(ahead)
                make = partial(self._unit, key=policy_key(version), learned=learned_key(self.config, version))
                self.rounds[ahead] = Batch(self.plan.units(ahead), make)
        if not self.config.pipeline.colocate:  # with colocate, workers rest while the learner updates
            self._prefetch(round + self.config.pipeline.staleness + 1)
        self._forget(round)
        return await self._answer(self.rounds[round], rank, world, lost)

    async def deploy(
        self, stream: int, count: int, round: int, key: str, learned: str | None, lost: tuple[str, ...] = ()
    ) -> RoundData:
        """Return samples of the student as deployed (S = 0) on `count` groups of a stream, scored against the teacher.

        key, learned: keys of the student's and the learned reward's weights; learned is None without such a reward.
        lost: as in `round_for`.
        """
        units = self.plan.deploy(Stream(stream), count, round=round)
        make = partial(self._unit, key=key, learned=learned)
        return await self._deployed((stream, count, key, learned), units, make, lost)

    async def reference(self, count: int, lost: tuple[str, ...] = ()) -> RoundData:
        """Return features of the judge's reference: its own images or, if it has none, the teacher's.

        The teacher's are images of `count` noises from which no arm of the evaluation starts.
        """
        units = reference_units(self.plan, count)
        images = sum(len(unit.groups) for unit in units)
        if (batch := self.references.get(images)) is None or batch.failed:
            batch = self.references[images] = Batch(units, self._reference, self.at_once)
        return await self._answer(batch, 0, 1, lost)

    async def ask(self, method: str, arguments: tuple[Any, ...]) -> tuple[Meta, Any]:
        """Call a reward worker for the driver, which waits; return the meta and a reference to the data."""
        meta, data = await self.reward.call(ASKED, method, *arguments)
        self._tell()
        return meta, data

    async def _deployed(
        self, name: tuple[Any, ...], units: list[WorkUnit], make: Make, lost: tuple[str, ...]
    ) -> RoundData:
        known = self.deployment
        if known is None or known[0] != name or known[1].failed:
            known = self.deployment = name, Batch(units, make, self.at_once)
        return await self._answer(known[1], 0, 1, lost)

    async def _answer(self, batch: Batch, rank: int, world: int, lost: tuple[str, ...]) -> RoundData:
        if again := batch.holding(lost):
            for index in again:
                self._repeat(batch.units[index])
            batch.again(again)
        if self.watching is None:
            self.watching = asyncio.ensure_future(self._watch())
        results, seconds = await asyncio.shield(batch.whole)
        self._tell()
        own = tuple((i, references) for i, (_, references) in enumerate(results) if i % world == rank)
        await self._make_room()
        return RoundData(tuple(metas for metas, _ in results), own, seconds)

    def _tell(self) -> None:
        """Report the workers' finished work to the writer."""
        if self.spans:
            self.writer.spans.remote(self.spans)
            self.spans = []

    async def _make_room(self) -> None:
        """Make the workers free the GPU that they share with the learner."""
        if self.config.pipeline.colocate:
            await asyncio.gather(self.rollout.rest(), self.reward.rest())

    def _repeat(self, unit: WorkUnit) -> None:
        """Note that a work unit is computed again; its teacher images are forgotten, for they may be the lost part."""
        self._lost("unit")
        self.ahead.pop((unit.round, unit.index), None)

    def _prefetch(self, round: int) -> None:
        if round < self.plan.rounds:
            for unit in self.plan.units(round):
                if self._begins_ahead(unit):
                    self._ahead(unit)

    def _begins_ahead(self, unit: WorkUnit) -> bool:
        """Tell whether a reward worker has work for a unit before, or in place of, its rollout."""
        phase = self.phases[unit.phase]
        return phase.teacher_images or self.captions or not phase.plays

    def _ahead(self, unit: WorkUnit) -> asyncio.Future[tuple[Any, ...]]:
        """Call reward workers, once, for a unit's work that needs no weights: teacher images, or captions alone.

        A deployed unit has its teacher images measured where they are made, so only its captions are asked for here.
        """
        if unit.phase == Deploy.name:
            return asyncio.ensure_future(self.reward.call(urgency(unit), "encode", unit))
        if (name := (unit.round, unit.index)) not in self.ahead:
            images = self.phases[unit.phase].teacher_images
            work = self._targets(unit) if images else self.reward.call(urgency(unit, 1), "encode", unit)
            self.ahead[name] = asyncio.ensure_future(work)
        return self.ahead[name]

    async def _targets(self, unit: WorkUnit) -> tuple[Any, ...]:
        """Call a reward worker for the teacher's images of a training unit, one call at a time for a block of units.

        The first call samples the whole block, and the others read their images from the store.
        """
        block = self.plan.sampled_with(unit)
        async with self.blocks.setdefault(block.groups, asyncio.Lock()):
            return await self.reward.call(urgency(unit, 1), "targets", unit, block)

    def _forget(self, before: int) -> None:
        self.deployment = None
        self.rounds = {round: batch for round, batch in self.rounds.items() if round >= before}
        self.ahead = {name: work for name, work in self.ahead.items() if name[0] >= before}

    async def _unit(self, unit: WorkUnit, key: str, learned: str | None) -> Parts:
        """Compute a work unit, again if an intermediate product is lost. Raises RayError after too many losses."""
        for _ in range(ATTEMPTS):
            try:
                return await self._made(unit, key, learned)
            except ObjectLostError as error:
                lost = type(error).__name__
                log.warning("a part of work unit %d of round %d was lost (%s)", unit.index, unit.round, lost)
                self._repeat(unit)
        raise RayError(f"work unit {unit.index} of round {unit.round} was lost {ATTEMPTS} times; are nodes failing?")

    async def _made(self, unit: WorkUnit, key: str, learned: str | None) -> Parts:
        at, phase, metas, made = urgency(unit), self.phases[unit.phase], [], {}
        ahead = self._ahead(unit) if self._begins_ahead(unit) else None
        if phase.plays:
            if self.captions and ahead is not None:
                await ahead
            roll_meta, made["trajectories"], final = await self.rollout.call(at, "rollout", unit, self.weights, key)
            metas.append(roll_meta)
        if ahead is not None:
            target_meta, made["targets"] = await ahead
            metas.insert(0, target_meta)
        if phase.plays:
            visited = made["trajectories"] if phase.asks_jumps else None
            given = final, visited, made.get("targets"), self.weights, learned
            score_meta, made["scored"] = await self.reward.call(at, "score", unit, *given)
            metas.append(score_meta)
        if phase.name != Deploy.name:
            self.ahead.pop((unit.round, unit.index), None)
        return tuple(metas), tuple(made[name] for name in phase.learner_reads)

    async def _reference(self, unit: WorkUnit) -> Parts:
        meta, reference = await self.reward.call(urgency(unit), "reference", unit)
        return (meta,), (reference,)

    async def status(self) -> dict[str, Any]:
        """Return, for each worker since this process started: seconds there, seconds busy, and work units done."""
        pools = (self.rollout, self.reward)
        return {
            "there": {worker: s for p in pools for worker, s in p.there().items()},
            "busy": {worker: s for p in pools for worker, s in p.busy.items()},
            "units": {worker: n for p in pools for worker, n in p.units.items()},
        }


def urgency(unit: WorkUnit, later: int = 0) -> Urgency:
    """Return the urgency of a unit: deployments, for which the learner waits, come first, then earlier rounds.

    later: 1 for work that other work of the same round should precede.
    """
    return ASKED if unit.phase == Deploy.name else (unit.round, later)
