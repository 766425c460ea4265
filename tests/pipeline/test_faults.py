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
from ray.exceptions import OwnerDiedError
from test_coordinator import Worker, coordinator

from redif_ray.diffusion.noise import Stream
from redif_ray.pipeline.faults import RESTARTABLE
from redif_ray.pipeline.pool import Pool
from redif_ray.pipeline.weight_store import WeightStore
from redif_ray.pipeline.weights import Publisher, fetch
from redif_ray.types import Meta, Shard

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
DEADLINE = 60


def start_process() -> Any:
    """An actor that answers with what it was given, and the number of its process."""

    class Process:  # in here, so that it is pickled whole: actors cannot import a test
        def ready(self) -> int:
            return os.getpid()

        def make(self) -> list[Any]:
            return [ray.put(np.zeros(3))]

        def score(self, shard: Shard, given: Any, *_: Any) -> tuple[Meta, tuple[Any, int]]:
            return Meta(shard, "process", ()), (given, os.getpid())

    return ray.remote(Process).options(num_cpus=0, **RESTARTABLE).remote()


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


def test_a_shard_whose_part_a_worker_cannot_fetch_is_made_again(tmp_path: Path) -> None:
    owner = start_process()
    (dead,) = ray.get(owner.make.remote())
    ray.kill(owner)
    wait_for(lambda: died(dead))
    found = coordinator(tmp_path)
    found.reward.workers = [Rewards(start_process())]
    found.rollout.workers[0].made = [dead, ray.put(np.ones(3))]
    data = asyncio.run(found.deploy(int(Stream.VALIDATION), 4, 0, "deploy-0", None))
    assert found.writer.noted == ["shard"]
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


def test_a_process_that_stands_still_is_replaced() -> None:
    worker, lost = start_process(), list[str]()
    first = ray.get(worker.ready.remote())
    os.kill(first, signal.SIGSTOP)
    shard = Shard(0, 0, "policy", Stream.TRAIN, (0,), (None,))

    async def run() -> int:
        _, reference = await Pool("reward", [worker], lost.append, 2).call((0, 0), "score", shard, "given")
        return (await reference)[1]

    assert asyncio.run(run()) != first
    assert lost == ["reward"]
