"""The coordinator: hands out shards, gathers (meta, reference) pairs, answers the learner's ranks.

It awaits metas only; trajectories and images go from worker to learner through the object store. Its state can be
rebuilt from (configuration, round), and it draws no random number.

While the learner updates on a round, the workers are at most `pipeline.staleness` rounds ahead of it, and the teacher's
images, which depend on no weights, one round more. Work of an earlier round always goes first.
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
from redif_ray.pipeline.pool import Pool, Urgency
from redif_ray.pipeline.weight_store import learned_key, policy_key
from redif_ray.types import Meta, Shard

REMEMBERED = 2  # deployments whose references are held
Parts = tuple[tuple[Meta, ...], tuple[Any, ...]]  # metas of a shard, and references to what was made of it


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
        self.rounds: dict[int, asyncio.Future[tuple[list[Parts], float]]] = {}
        self.deployments: dict[tuple[Any, ...], asyncio.Future[tuple[list[Parts], float]]] = {}
        self.targets: dict[tuple[int, int], asyncio.Future[tuple[Meta, Any]]] = {}  # by round and shard
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

    async def restart(self) -> None:
        """A learner begins, maybe not the first: what was made for another is forgotten, for its weights may differ."""
        self.rounds.clear()
        self.targets.clear()

    async def round_for(self, round: int, rank: int, world: int) -> RoundData | None:
        """Round `round`, rolled out and scored with the versions that the plan says; None when the run is to stop.

        Asked again, it answers alike, until the round after the next is asked for.
        """
        if self.stopping:
            return None
        for ahead in range(round, min(round + self.config.pipeline.staleness + 1, self.plan.rounds)):
            if ahead not in self.rounds:
                version = self.plan.version(ahead)
                work = self._run(self.plan.shards(ahead), policy_key(version), learned_key(self.config, version))
                self.rounds[ahead] = asyncio.ensure_future(work)
        self._prefetch(round + self.config.pipeline.staleness + 1)
        self._forget(round - 1)  # which a rank that lags may still ask for
        return await self._answer(self.rounds[round], rank, world)

    async def deploy(self, stream: int, count: int, round: int, key: str, learned: str | None) -> RoundData:
        """Samples of the student as deployed (S = 0) on `count` groups of a stream, scored against the teacher.

        learned: the key of the learned reward's weights, if the run has one.
        """
        name = (stream, count, key, learned)
        known = self.deployments.get(name)
        if known is None or (known.done() and known.exception() is not None):
            shards = self.plan.deploy(Stream(stream), count, round=round)
            self.deployments[name] = asyncio.ensure_future(self._run(shards, key, learned))
            for old in list(self.deployments)[:-REMEMBERED]:
                del self.deployments[old]
        return await self._answer(self.deployments[name], 0, 1)

    async def reference(self, count: int) -> tuple[list[Meta], list[Any]]:
        """Metas of, and references to, the teacher's images of `count` noises that no arm of a run starts from."""
        shards = self.plan.deploy(Stream.REFERENCE, count)
        found = await asyncio.gather(*(self.reward.call(urgency(shard), "targets", shard) for shard in shards))
        return [meta for meta, _ in found], [data for _, data in found]

    async def _answer(self, work: asyncio.Future[tuple[list[Parts], float]], rank: int, world: int) -> RoundData:
        results, seconds = await asyncio.shield(work)
        mine = tuple((i, references) for i, (_, references) in enumerate(results) if i % world == rank)
        return RoundData(tuple(metas for metas, _ in results), mine, seconds)

    def _prefetch(self, round: int) -> None:
        if round < self.plan.rounds:
            for shard in self.plan.shards(round):
                if shard.phase != "warm_start":
                    self._targets(shard)

    def _targets(self, shard: Shard) -> asyncio.Future[tuple[Meta, Any]]:
        """The teacher's images of a shard, asked for once."""
        name = (shard.round, shard.index)
        if shard.phase == "deploy":
            return asyncio.ensure_future(self.reward.call(urgency(shard), "targets", shard))
        if name not in self.targets:
            self.targets[name] = asyncio.ensure_future(self.reward.call(urgency(shard, 1), "targets", shard))
        return self.targets[name]

    def _forget(self, before: int) -> None:
        self.rounds = {round: work for round, work in self.rounds.items() if round >= before}
        self.targets = {name: work for name, work in self.targets.items() if name[0] >= before}

    async def _run(self, shards: list[Shard], key: str, learned: str | None) -> tuple[list[Parts], float]:
        started = time.monotonic()
        results = await asyncio.gather(*(self._shard(shard, key, learned) for shard in shards))
        return list(results), time.monotonic() - started

    async def _shard(self, shard: Shard, key: str, learned: str | None) -> Parts:
        at = urgency(shard)
        if shard.phase == "warm_start":
            roll_meta, roll_ref = await self.rollout.call(at, "rollout", shard, self.weights, key)
            jump_meta, jump_ref = await self.reward.call(at, "jump", shard, roll_ref)
            return (roll_meta, jump_meta), (roll_ref, jump_ref)
        targets = self._targets(shard)
        if shard.phase == "draft":
            meta, reference = await targets
            return (meta,), (reference,)
        roll_meta, roll_ref = await self.rollout.call(at, "rollout", shard, self.weights, key)
        target_meta, target_ref = await targets
        score_meta, score_ref = await self.reward.call(at, "score", shard, roll_ref, target_ref, self.weights, learned)
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


def urgency(shard: Shard, later: int = 0) -> Urgency:
    """Of a deployment, which the learner waits for, first of all; else of the earlier round."""
    return (-1 if shard.phase == "deploy" else shard.round, later)
