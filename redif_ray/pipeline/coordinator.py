"""The coordinator: hands out shards, gathers (meta, reference) pairs, answers the learner's ranks.

It awaits metas only; trajectories and images go from worker to learner through the object store. Its state can be
rebuilt from (configuration, round), and it draws no random number.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.pipeline.plan import RoundPlan
from redif_ray.pipeline.pool import Pool
from redif_ray.pipeline.weight_store import learned_key
from redif_ray.types import Meta, Shard

REMEMBERED = 4  # rounds whose references are held, for ranks that ask late or ask again


@dataclass(frozen=True, slots=True)
class RoundData:
    """A round as a rank sees it: all metas, and (trajectories, scored or targets) references of its own shards."""

    metas: tuple[tuple[Meta, ...], ...]  # one tuple a shard, in order of index
    references: tuple[tuple[int, tuple[Any, ...]], ...]  # (shard index, references), this rank's
    seconds: float


class Coordinator:
    def __init__(
        self, config: Config, conditions: Conditions, weights: Any, rollout: list[Any], reward: list[Any]
    ) -> None:
        self.config, self.weights = config, weights
        self.plan = RoundPlan(config, conditions)
        self.rollout, self.reward = Pool("rollout", rollout), Pool("reward", reward)
        self.rounds: dict[tuple[Any, ...], asyncio.Future[Any]] = {}
        self.stopping = False
        self.calibration: dict[str, Any] | None = None
        self.begun = asyncio.Event()
        self.started = time.monotonic()

    async def stop(self) -> None:
        """Ask the learner to checkpoint and leave at its next round."""
        self.stopping = True
        self.begun.set()

    async def begin(self, calibration: dict[str, Any]) -> None:
        """The workers are ready and their rewards calibrated: the learner, which loads meanwhile, may start."""
        self.calibration = calibration
        self.begun.set()

    async def begun_with(self) -> dict[str, Any] | None:
        """The calibration of the rewards, once it is known; None when the run is to stop."""
        await self.begun.wait()
        return None if self.stopping else self.calibration

    async def round_for(self, round: int, key: str, rank: int, world: int) -> RoundData | None:
        """Round `round` rolled out with weights `key`; None when the run is to stop. Asked again, it answers alike.

        A learned reward scores it as it is after the rounds before.
        """
        if self.stopping:
            return None
        learned = learned_key(self.config, round)
        return await self._gather(("round", round, key), self.plan.shards(round), key, learned, rank, world)

    async def deploy(self, stream: int, count: int, round: int, key: str, learned: str | None) -> RoundData:
        """Samples of the student as deployed (S = 0) on `count` groups of a stream, scored against the teacher.

        learned: the key of the learned reward's weights, if the run has one.
        """
        shards = self.plan.deploy(Stream(stream), count, round=round)
        return await self._gather(("deploy", stream, count, key, learned), shards, key, learned, 0, 1)

    async def reference(self, count: int) -> tuple[list[Meta], list[Any]]:
        """Metas of, and references to, the teacher's images of `count` noises that no arm of a run starts from."""
        shards = self.plan.deploy(Stream.REFERENCE, count)
        found = await asyncio.gather(*(self.reward.call("targets", shard) for shard in shards))
        return [meta for meta, _ in found], [data for _, data in found]

    async def _gather(
        self, name: tuple[Any, ...], shards: list[Shard], key: str, learned: str | None, rank: int, world: int
    ) -> RoundData:
        known = self.rounds.get(name)
        if known is None or (known.done() and known.exception() is not None):
            self.rounds[name] = asyncio.ensure_future(self._run(shards, key, learned))
            for old in list(self.rounds)[:-REMEMBERED]:
                del self.rounds[old]
        results, seconds = await asyncio.shield(self.rounds[name])
        mine = tuple((s.index, refs) for s, (_, refs) in zip(shards, results, strict=True) if s.index % world == rank)
        return RoundData(tuple(metas for metas, _ in results), mine, seconds)

    async def _run(
        self, shards: list[Shard], key: str, learned: str | None
    ) -> tuple[list[tuple[tuple[Meta, ...], tuple[Any, ...]]], float]:
        started = time.monotonic()
        results = await asyncio.gather(*(self._shard(shard, key, learned) for shard in shards))
        return list(results), time.monotonic() - started

    async def _shard(self, shard: Shard, key: str, learned: str | None) -> tuple[tuple[Meta, ...], tuple[Any, ...]]:
        if shard.phase == "warm_start":
            roll_meta, roll_ref = await self.rollout.call("rollout", shard, self.weights, key)
            jump_meta, jump_ref = await self.reward.call("jump", shard, roll_ref)
            return (roll_meta, jump_meta), (roll_ref, jump_ref)
        targets = asyncio.ensure_future(self.reward.call("targets", shard))
        if shard.phase == "draft":
            meta, reference = await targets
            return (meta,), (reference,)
        roll_meta, roll_ref = await self.rollout.call("rollout", shard, self.weights, key)
        target_meta, target_ref = await targets
        score_meta, score_ref = await self.reward.call("score", shard, roll_ref, target_ref, self.weights, learned)
        return (target_meta, roll_meta, score_meta), (roll_ref, score_ref)

    async def status(self) -> dict[str, Any]:
        """Busy seconds and shards of each worker, and what was lost, since the start."""
        pools = {p.role: p for p in (self.rollout, self.reward)}
        return {
            "seconds": time.monotonic() - self.started,
            "busy": {worker: s for p in pools.values() for worker, s in p.busy.items()},
            "shards": {worker: n for p in pools.values() for worker, n in p.shards.items()},
            "lost": {role: p.lost for role, p in pools.items()},
        }
