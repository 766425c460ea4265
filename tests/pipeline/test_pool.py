"""Which call a free worker takes, and what becomes of one whose worker dies. Workers here are plain objects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError

from redif_ray.diffusion.noise import Stream
from redif_ray.pipeline.pool import ATTEMPTS, Pool
from redif_ray.types import Meta, Shard, Work


class Worker:
    """Answers after a moment what its script says: a result, or an error to raise. `done` lists what it was asked."""

    def __init__(self, script: list[Exception | None] | None = None) -> None:
        self.script, self.done = script or [], []

    @property
    def work(self) -> Worker:
        return self

    def options(self, num_returns: int) -> Worker:
        assert num_returns == 2
        return self

    def remote(self, index: int) -> tuple[Any, str]:
        return self._answer(index), f"data {index}"

    async def _answer(self, index: int) -> Meta:
        await asyncio.sleep(0.001)
        self.done.append(index)
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        shard = Shard(0, index, "policy", Stream.TRAIN, (index,), (None,))
        return Meta(shard, "worker-0", (Work("rollout", 0.5, 4),))


def test_the_most_urgent_goes_first_and_equals_in_order() -> None:
    worker = Worker()

    async def run() -> list[str]:
        pool = Pool("rollout", [worker])
        urgencies = [(3, 0), (1, 1), (1, 0), (2, 0), (1, 0), (-1, 0)]
        answers = await asyncio.gather(*(pool.call(u, "work", i) for i, u in enumerate(urgencies)))
        assert pool.shards == {"worker-0": 6} and pool.busy == {"worker-0": 3.0}
        return [data for _, data in answers]

    assert asyncio.run(run()) == [f"data {i}" for i in range(6)]
    assert worker.done == [5, 2, 4, 1, 3, 0]


def test_what_a_lost_worker_had_begun_another_does() -> None:
    one, two = Worker([RayActorError()]), Worker()

    async def run() -> tuple[int, Meta]:
        pool = Pool("rollout", [one, two])
        answers = await asyncio.gather(*(pool.call((0, 0), "work", i) for i in range(2)))
        return pool.lost, answers[0][0]

    lost, meta = asyncio.run(run())
    assert lost == 1 and meta.shard.index == 0
    assert sorted(one.done + two.done) == [0, 0, 1]


def test_work_that_kills_every_worker_is_given_up() -> None:
    worker = Worker([RayActorError()] * ATTEMPTS)
    with pytest.raises(RayError, match=f"lost {ATTEMPTS} times"):
        asyncio.run(Pool("rollout", [worker]).call((0, 0), "work", 0))
    assert worker.done == [0] * ATTEMPTS


def test_an_error_of_the_work_itself_is_for_whoever_asked() -> None:
    worker = Worker([ValueError("nan"), None])

    async def run() -> None:
        pool = Pool("rollout", [worker])
        with pytest.raises(ValueError, match="nan"):
            await pool.call((0, 0), "work", 0)
        assert (await pool.call((0, 0), "work", 1))[1] == "data 1"  # its worker goes on
        assert pool.lost == 0

    asyncio.run(run())
