"""What Ray really does to those who lose an object, a store or an answer; the actors are small."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from plain_workers import Worker, coordinator
from ray import cloudpickle
from ray.exceptions import OwnerDiedError

from redif_ray.config import load
from redif_ray.coordinator.client import ask
from redif_ray.coordinator.coordinator import Coordinator
from redif_ray.coordinator.pool import Pool
from redif_ray.data.conditions import CONDITIONS, Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.faults import RESTARTABLE
from redif_ray.types import Meta, WorkUnit
from redif_ray.weights.publisher import Publisher, fetch
from redif_ray.weights.store import WeightStore

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
DEADLINE = 60


def start_process(**options: Any) -> Any:
    """An actor that answers with what it was given, and the number of its process."""

    class Process:  # in here, so that it is pickled whole: actors cannot import a test
        def ready(self) -> int:
            return os.getpid()

        def make(self) -> list[Any]:
            return [ray.put(np.zeros(3))]

        def score(self, unit: WorkUnit, given: Any, *_: Any) -> tuple[Meta, tuple[Any, int]]:
            return Meta(unit, "process", ()), (given, os.getpid())

    return ray.remote(Process).options(num_cpus=0, **RESTARTABLE, **options).remote()


def wait_for(point: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not point():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def died(reference: Any) -> bool:
    try:
        ray.get(reference)
    except OwnerDiedError:
        return True
    return False


def test_a_unit_whose_part_a_worker_cannot_fetch_is_made_again(tmp_path: Path) -> None:
    owner = start_process()
    (dead,) = ray.get(owner.make.remote())
    ray.kill(owner)
    wait_for(lambda: died(dead))
    found = coordinator(tmp_path)
    found.reward.workers = [Rewards(start_process())]
    found.rollout.workers[0].made = [None, dead, None, ray.put(np.ones(3))]
    data = asyncio.run(found.deploy(int(Stream.VALIDATION), 4, 0, "deploy-0", None))
    assert found.writer.noted == ["unit"]
    ((_, (scored,)),) = data.references
    assert np.array_equal(ray.get(scored)[0], np.ones(3))


class Rewards:
    """Scores in a process, all else here."""

    def __init__(self, process: Any) -> None:
        self.targets, self.score, self.ready = Worker(made=[None, None]).targets, process.score, process.ready


def test_a_lost_weight_store_is_given_its_weights_again() -> None:
    store = ray.remote(WeightStore).options(num_cpus=0, **RESTARTABLE).remote()
    publisher = Publisher(store)
    for key in ("policy-0", "policy-1"):
        publisher.publish(key, {"w": torch.arange(5.0)})
    ray.kill(store, no_restart=False)
    wait_for(lambda: ray.get(store.lacks.remote(["policy-1"])) == ["policy-1"])
    publisher.forget(before=1)
    publisher.look_after()
    assert torch.equal(fetch(store, "policy-1")[0]["w"], torch.arange(5.0))
    assert ray.get(store.lacks.remote(["policy-0", "policy-1"])) == ["policy-0"]


def calls(count: int) -> list[tuple[WorkUnit, np.ndarray]]:
    return [(WorkUnit(0, i, "deploy", Stream.HELD_OUT, (i,), (None,)), np.full(40_000, float(i))) for i in range(count)]


def test_what_the_driver_cannot_fetch_is_made_again() -> None:
    owner = start_process()
    (dead,) = ray.get(owner.make.remote())
    ray.kill(owner)
    wait_for(lambda: died(dead))

    class Desk:
        """Answers the second call with what is lost, once."""

        def __init__(self, lost: list[Any]) -> None:
            self.lost = lost

        def ask(self, method: str, arguments: tuple[Any, ...]) -> tuple[Meta, Any]:
            unit, given = arguments
            assert method == "compare"
            return Meta(unit, "process", ()), self.lost.pop() if unit.index == 1 and self.lost else ray.put(given)

    desk = ray.remote(Desk).options(num_cpus=0).remote([dead])
    metas, found = ask(desk, "compare", calls(5), at_once=2)
    assert [meta.unit.index for meta in metas] == [array[-1] for array in found] == list(range(5))
    with pytest.raises(OwnerDiedError):
        ask(ray.remote(Desk).options(num_cpus=0).remote([dead] * 5), "compare", calls(2), at_once=2)


def test_the_driver_waits_for_no_worker_that_is_away(tmp_path: Path) -> None:
    """Because there is no room for it, or because it stands still."""
    away = start_process(resources={"nobody": 1})
    near, still = start_process(), start_process()
    os.kill(ray.get(still.ready.remote()), signal.SIGSTOP)
    (tmp_path / CONDITIONS).write_text(Conditions((None,), (None,)).to_json())
    config = load("smoke", ["ray.address=auto", "reward.max_workers=3", "reward.min_workers=1"])
    handles = cloudpickle.dumps((None, near, [], [away, still, near]))
    kind = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=10, **RESTARTABLE)
    desk, began = kind.remote(config, str(tmp_path), handles), 0.0
    for _ in range(10):
        _, found = ask(desk, "score", calls(3), at_once=1)
        assert {process for _, process in found} == {ray.get(near.ready.remote())}
        assert [given[0] for given, _ in found] == [0, 1, 2]
        began = began or time.monotonic()
    assert time.monotonic() - began < 5
    ray.kill(desk)


def test_a_process_that_stands_still_is_replaced() -> None:
    worker, lost = start_process(), list[str]()
    first = ray.get(worker.ready.remote())
    os.kill(first, signal.SIGSTOP)
    unit = WorkUnit(0, 0, "policy", Stream.TRAIN, (0,), (None,))

    async def run() -> int:
        _, reference = await Pool("reward", [worker], lost.append, 2).call((0, 0), "score", unit, "given")
        return (await reference)[1]

    assert asyncio.run(run()) != first
    assert lost == ["reward"]
