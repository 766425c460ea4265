"""Which call a free worker takes, and what becomes of one whose worker dies. Workers here are plain objects."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError

from redif_ray.diffusion.noise import Stream
from redif_ray.pipeline.faults import ATTEMPTS
from redif_ray.pipeline.pool import Pool
from redif_ray.pipeline.run_folder import RunError
from redif_ray.types import Meta, Shard, Work


class Worker:
    """Answers after a moment what its script says: a result, or an error to raise. `done` lists what it was asked."""

    def __init__(self, script: list[Exception | None] | None = None) -> None:
        self.script, self.done = script or [], []

    @property
    def work(self) -> Worker:
        return self

    @property
    def ready(self) -> Any:
        return SimpleNamespace(remote=self.come_back)

    async def come_back(self) -> str:
        return "worker-0"

    def options(self, num_returns: int, max_task_retries: int) -> Worker:
        assert (num_returns, max_task_retries) == (2, 0)
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
        pool = Pool("rollout", [worker], print, 60)
        urgencies = [(3, 0), (1, 1), (1, 0), (2, 0), (1, 0), (-1, 0)]
        answers = await asyncio.gather(*(pool.call(u, "work", i) for i, u in enumerate(urgencies)))
        assert pool.shards == {"worker-0": 6} and pool.busy == {"worker-0": 3.0}
        return [data for _, data in answers]

    assert asyncio.run(run()) == [f"data {i}" for i in range(6)]
    assert worker.done == [5, 2, 4, 1, 3, 0]


def test_what_a_lost_worker_had_begun_another_does() -> None:
    one, two = Worker([RayActorError()]), Worker()

    lost: list[str] = []

    async def run() -> Meta:
        pool = Pool("rollout", [one, two], lost.append, 60)
        answers = await asyncio.gather(*(pool.call((0, 0), "work", i) for i in range(2)))
        return answers[0][0]

    assert asyncio.run(run()).shard.index == 0
    assert lost == ["rollout"]
    assert sorted(one.done + two.done) == [0, 0, 1]


def test_work_that_kills_every_worker_is_given_up() -> None:
    worker = Worker([RayActorError()] * ATTEMPTS)
    with pytest.raises(RayError, match=f"lost {ATTEMPTS} times"):
        asyncio.run(Pool("rollout", [worker], print, 60).call((0, 0), "work", 0))
    assert worker.done == [0] * ATTEMPTS


def test_the_others_go_on_without_a_worker_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Worker([RayActorError()]), Worker()
    monkeypatch.setattr(one, "come_back", AsyncMock(side_effect=[ActorUnavailableError("", None), ActorDiedError()]))

    async def run(pool: Pool) -> list[str]:
        return [data for _, data in await asyncio.gather(*(pool.call((0, 0), "work", i) for i in range(4)))]

    assert asyncio.run(run(Pool("rollout", [one, two], print, 60))) == [f"data {i}" for i in range(4)]
    assert one.done == [0]


def test_an_error_says_that_no_worker_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([RayActorError()])
    elsewhere = RayTaskError("ready", "", RunError("node N does not see it")).as_instanceof_cause()
    monkeypatch.setattr(worker, "come_back", AsyncMock(side_effect=elsewhere))

    async def run() -> None:
        pool = Pool("rollout", [worker], print, 60)
        with pytest.raises(RayError, match=r"the last rollout worker was lost.*node N does not see it"):
            await asyncio.gather(*(pool.call((0, 0), "work", i) for i in range(2)))
        with pytest.raises(RayError, match="the last rollout worker was lost"):
            await pool.call((0, 0), "work", 2)

    asyncio.run(run())


def test_a_worker_that_hangs_is_killed_and_its_work_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[Any, bool]] = []
    monkeypatch.setattr("ray.kill", lambda worker, no_restart: killed.append((worker, no_restart)))
    hanging, good, lost = Worker(), Worker(), list[str]()
    monkeypatch.setattr(hanging, "_answer", lambda _: asyncio.sleep(60))

    async def run() -> list[str]:
        pool = Pool("rollout", [hanging, good], lost.append, 0.1)
        return [data for _, data in await asyncio.gather(*(pool.call((0, 0), "work", i) for i in range(2)))]

    assert asyncio.run(run()) == ["data 0", "data 1"]
    assert killed == [(hanging, False)] and lost == ["rollout"]
    assert sorted(good.done) == [0, 1]


@pytest.mark.parametrize("cause", [ValueError("nan"), ActorDiedError(), TimeoutError("nan")])
def test_an_error_of_the_work_itself_is_for_whoever_asked(cause: Exception) -> None:
    """Another actor's death, met in the course of the work, is one too."""
    worker, lost = Worker([RayTaskError("work", "", cause).as_instanceof_cause(), None]), list[str]()

    async def run() -> None:
        pool = Pool("rollout", [worker], lost.append, 60)
        with pytest.raises(type(cause)):
            await pool.call((0, 0), "work", 0)
        assert (await pool.call((0, 0), "work", 1))[1] == "data 1"  # its worker goes on

    asyncio.run(run())
    assert not lost
