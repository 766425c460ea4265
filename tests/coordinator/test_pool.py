"""Which call a free worker takes, and what becomes of one whose worker dies. Workers here are plain objects."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError

from redif_ray.coordinator.pool import Pool
from redif_ray.diffusion.noise import Stream
from redif_ray.faults import ATTEMPTS
from redif_ray.runs.folder import RunError
from redif_ray.types import Meta, Work, WorkUnit


class Worker:
    """Answers after a moment what its script says: a result, or an error to raise. `done` lists what it was asked.

    There while `there` is set; leaves: an error of its script means that it is not there until that is set again.
    """

    def __init__(
        self, script: list[Exception | None] | None = None, *, name: str = "worker-0", leaves: bool = False
    ) -> None:
        self.script, self.name, self.leaves, self.done = script or [], name, leaves, []
        self.there = asyncio.Event()
        self.there.set()

    @property
    def work(self) -> Worker:
        return self

    @property
    def ready(self) -> Any:
        return SimpleNamespace(remote=self.come_back)

    async def come_back(self) -> str:
        await self.there.wait()
        return self.name

    def options(self, num_returns: int, max_task_retries: int) -> Worker:
        assert (num_returns, max_task_retries) == (2, 0)
        return self

    def remote(self, index: int) -> tuple[Any, str]:
        return self._answer(index), f"data {index}"

    async def _answer(self, index: int) -> Meta:
        await asyncio.sleep(0.001)
        self.done.append(index)
        if self.script and (error := self.script.pop(0)) is not None:
            if self.leaves:
                self.there.clear()
            raise error
        unit = WorkUnit(0, index, "policy", Stream.TRAIN, (index,), (None,))
        return Meta(unit, self.name, (Work("rollout", 0.5, 4),))


async def every(pool: Pool, indices: range) -> list[str]:
    return [data for _, data in await asyncio.gather(*(pool.call((0, 0), "work", i) for i in indices))]


def test_the_most_urgent_goes_first_and_equals_in_order() -> None:
    worker = Worker()

    async def run() -> list[str]:
        pool = Pool("rollout", [worker], print, 60)
        urgencies = [(3, 0), (1, 1), (1, 0), (2, 0), (1, 0), (-1, 0)]
        answers = await asyncio.gather(*(pool.call(u, "work", i) for i, u in enumerate(urgencies)))
        assert pool.units == {"worker-0": 6} and pool.busy == {"worker-0": 3.0}
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

    assert asyncio.run(run()).unit.index == 0
    assert lost == ["rollout"]
    assert sorted(one.done + two.done) == [0, 0, 1]


@pytest.mark.slow
def test_work_that_kills_every_worker_is_given_up() -> None:
    worker = Worker([RayActorError()] * ATTEMPTS)
    with pytest.raises(RayError, match=f"lost {ATTEMPTS} times"):
        asyncio.run(Pool("rollout", [worker], print, 60).call((0, 0), "work", 0))
    assert worker.done == [0] * ATTEMPTS


def test_the_others_go_on_without_a_worker_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Worker([RayActorError()]), Worker()
    answers = ["one", ActorUnavailableError("", None), ActorDiedError()]
    monkeypatch.setattr(one, "come_back", AsyncMock(side_effect=answers))

    async def run(pool: Pool) -> list[str]:
        return await every(pool, range(4))

    assert asyncio.run(run(Pool("rollout", [one, two], print, 60))) == [f"data {i}" for i in range(4)]
    assert one.done == [0]


@pytest.mark.slow
def test_an_error_says_that_no_worker_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([RayActorError()])
    elsewhere = RayTaskError("ready", "", RunError("node N does not see it")).as_instanceof_cause()
    monkeypatch.setattr(worker, "come_back", AsyncMock(side_effect=["worker-0", elsewhere]))

    async def run() -> None:
        pool = Pool("rollout", [worker], print, 60)
        with pytest.raises(RayError, match=r"0 rollout workers are up; expected at least 1: .*node N does not see it"):
            await every(pool, range(2))
        with pytest.raises(RayError, match="0 rollout workers are up"):
            await pool.call((0, 0), "work", 2)

    asyncio.run(run())


def test_a_worker_joins_late_and_takes_no_work_before() -> None:
    one, late, lost = Worker(), Worker(name="late"), list[str]()
    late.there.clear()

    async def run() -> None:
        pool = Pool("rollout", [one], lost.append, 60)
        await every(pool, range(1))
        pool.join(late)
        await every(pool, range(1, 3))
        pool.join(late)  # which the pool knows: told again
        assert (len(pool.workers), list(pool.there()), late.done) == (2, ["worker-0"], [])
        late.there.set()
        await asyncio.sleep(0.05)
        await every(pool, range(3, 9))
        there = pool.there()
        assert late.done and sorted(one.done + late.done) == list(range(9))
        assert 0 < there["late"] < there["worker-0"]

    asyncio.run(run())
    assert not lost


@pytest.mark.slow
def test_a_worker_leaves_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit of time, while the least are there; the time away is no time there."""
    monkeypatch.setattr("redif_ray.coordinator.pool.BACK_SECONDS", 0.05)
    one, two = Worker(), Worker([RayActorError()], name="two", leaves=True)

    async def run() -> None:
        pool = Pool("rollout", [one, two], print, 60, least=1)
        await every(pool, range(4))
        away = pool.there()["two"]
        await asyncio.sleep(0.3)
        assert pool.there()["two"] == away and pool.failure is None and len(two.done) == 1
        two.there.set()
        await asyncio.sleep(0.05)
        await every(pool, range(4, 12))
        assert len(two.done) > 1 and pool.there()["two"] > away

    asyncio.run(run())


@pytest.mark.slow
def test_too_few_for_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are left work on meanwhile."""
    monkeypatch.setattr("redif_ray.coordinator.pool.BACK_SECONDS", 0.4)
    one, two = Worker(), Worker([RayActorError()], leaves=True)

    async def run() -> None:
        pool = Pool("reward", [one, two], print, 60, least=2)
        assert await every(pool, range(4)) == [f"data {i}" for i in range(4)]
        assert pool.failure is None
        await asyncio.sleep(0.5)
        with pytest.raises(RayError, match=r"1 reward workers are up; expected at least 2: .*continue with --resume"):
            await pool.call((0, 0), "work", 4)

    asyncio.run(run())


@pytest.mark.slow
def test_enough_in_time_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redif_ray.coordinator.pool.BACK_SECONDS", 0.4)
    one, two = Worker(), Worker([RayActorError()], leaves=True)

    async def run() -> None:
        pool = Pool("reward", [one, two], print, 60, least=2)
        await every(pool, range(4))
        two.there.set()
        await asyncio.sleep(0.6)
        assert await every(pool, range(4, 6)) == ["data 4", "data 5"]

    asyncio.run(run())


def test_workers_that_are_lost_together_cost_a_unit_one_attempt() -> None:
    """As those of a node do: they wait for work, and no one says that they are gone."""
    gone = [Worker([RayActorError()] * ATTEMPTS, leaves=True) for _ in range(2 * ATTEMPTS)]
    good, lost = Worker(), list[str]()

    async def run() -> str:
        pool = Pool("rollout", [*gone, good], lost.append, 60)
        pool.serving = [asyncio.ensure_future(pool._serve(worker)) for worker in pool.workers]
        await asyncio.sleep(0.05)
        for worker in gone:
            worker.there.clear()
        return (await pool.call((0, 0), "work", 0))[1]

    assert asyncio.run(run()) == "data 0"
    assert lost == ["rollout"]


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


@pytest.mark.slow
def test_who_joins_may_take_long_to_load_but_not_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("ray.kill", lambda worker, no_restart: killed.append(worker))
    one, late, lost = Worker(), Worker([RayActorError()], name="late", leaves=True), list[str]()
    late.there.clear()

    async def run() -> None:
        pool = Pool("rollout", [one], lost.append, 0.5)
        await every(pool, range(1))
        pool.join(late)
        await asyncio.sleep(0.7)
        assert not killed and not lost
        late.there.set()
        while not late.done:
            await every(pool, range(4))
        while not killed:
            await asyncio.sleep(0.05)
        assert killed == [late] and lost == ["rollout"] * 2  # its call, and itself

    asyncio.run(run())


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
