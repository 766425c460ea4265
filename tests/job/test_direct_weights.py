"""Weights that rollout workers read out of the learner's memory, and what those who read see when it goes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from smoke_runs import last_weights, plain_weights, rounds, smoke, start, summary
from test_kills import DEADLINE, actors, kill_in_mid_round, wait_for

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import ConfigError
from redif_ray.faults import RESTARTABLE
from redif_ray.job.distill import distill
from redif_ray.job.preflight import preflight
from redif_ray.weights.direct import Offer, ReadError, read
from redif_ray.weights.publisher import Publisher, _read, fetch
from redif_ray.weights.store import StaleWeightsError, WeightStore

try:
    from nixl import _api as _  # noqa: F401
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True
needs_nixl = pytest.mark.skipif(not INSTALLED, reason="nixl is not installed: pip install redif-ray[direct]")
on_cluster = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def clustered(test: Any) -> Any:
    for mark in (*on_cluster, needs_nixl):
        test = mark(test)
    return test


def test_without_the_package_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(ConfigError, match=r"pipeline.weights=direct: .*pip install redif-ray\[direct\]"):
        distill(smoke(tmp_path, "direct", "pipeline.weights=direct"))
    assert not (tmp_path / "direct").exists()
    preflight(smoke(tmp_path, "store"))


@needs_nixl
def test_what_is_read_is_what_was_offered() -> None:
    weights = {"w": torch.rand(3, 5).T, "half": torch.rand(7).bfloat16(), "one": torch.tensor(2.0)}
    offers = [Offer(weights), Offer({"w": torch.zeros(4)})]
    found = read(offers[0].address)
    assert weights_sha256(found) == weights_sha256(weights) and found["half"].dtype == torch.bfloat16
    offers[0].withdraw()
    checksum = weights_sha256(offers[1].weights)
    assert _read("policy-1", offers[1].address, checksum)["w"].tolist() == [0.0] * 4
    offers[1].weights["w"][2] = 1.0  # as memory that serves another purpose by now
    with pytest.raises(ReadError, match="read as weights policy-1 does not match their checksum"):
        _read("policy-1", offers[1].address, checksum)


class Process:
    """Publishes in a thread that is not the actor's own, as Ray Train has it, and fetches."""

    def __init__(self, store: Any) -> None:
        self.store, self.publisher = store, Publisher(store, direct=True)

    def pid(self) -> int:
        return os.getpid()

    def publish(self, key: str, value: float, numel: int = 1000) -> None:
        weights = {"w": torch.full((numel,), value), "b": torch.full((3, 5), value)}
        thread = threading.Thread(target=self.publisher.publish, args=(key, weights))
        thread.start()
        thread.join()

    def call(self, method: str, *arguments: Any) -> None:
        getattr(self.publisher, method)(*arguments)

    def fetch(self, key: str) -> tuple[float, float, str]:
        weights, checksum = fetch(self.store, key)
        return float(weights["w"].min()), float(weights["b"].max()), checksum


def processes(store: Any, count: int) -> list[Any]:
    kind = ray.remote(Process).options(num_cpus=0)
    return [kind.remote(store) for _ in range(count)]


def raised(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        call()
    return caught.value.cause


@pytest.fixture
def by_value() -> Any:
    """Actors cannot import a test: its classes travel whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@clustered
def test_who_dies_and_what_the_others_see(by_value: None) -> None:
    store = ray.remote(WeightStore).options(num_cpus=0, **RESTARTABLE).remote()
    learner, successor, reader, other = processes(store, 4)
    pids = {process: ray.get(process.pid.remote()) for process in (learner, other)}
    for version in (0, 1):
        ray.get(learner.publish.remote(f"policy-{version}", version + 0.5))
    ray.get(learner.publish.remote("deploy-1", 7.0))
    assert ray.get(reader.fetch.remote("policy-0"))[:2] == (0.5, 0.5)
    known = ray.get(reader.fetch.remote("policy-1"))

    ray.kill(store, no_restart=False)  # it is given its addresses again
    deadline = time.monotonic() + 60
    while ray.get(store.lacks.remote(["policy-1"])) != ["policy-1"]:
        assert time.monotonic() < deadline
    ray.get(learner.call.remote("look_after"))
    assert ray.get(other.fetch.remote("policy-1")) == known

    ray.get(learner.call.remote("forget", 1))
    assert isinstance(raised(lambda: ray.get(reader.fetch.remote("policy-0"))), StaleWeightsError)

    ray.get(learner.publish.remote("policy-2", 2.5, 100_000_000))
    asked = other.fetch.remote("policy-2")
    time.sleep(0.2)
    os.kill(pids[other], signal.SIGKILL)  # a reader in the middle of it: the publisher and the other reader go on
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(asked)
    assert ray.get(reader.fetch.remote("policy-2"))[:2] == (2.5, 2.5)

    asked = reader.fetch.remote("policy-2")
    time.sleep(0.2)
    os.kill(pids[learner], signal.SIGKILL)  # in the middle of a read
    assert isinstance(raised(lambda: ray.get(asked)), ReadError)
    assert isinstance(raised(lambda: ray.get(reader.fetch.remote("policy-1"))), ReadError)
    assert ray.get(reader.fetch.remote("deploy-1"))[:2] == (7.0, 7.0)  # the store's own
    ray.get(successor.publish.remote("policy-1", 1.5))
    assert ray.get(reader.fetch.remote("policy-1")) == known


@clustered
def test_a_run_ends_with_the_same_weights(first: Path, root: Path) -> None:
    assert last_weights(distill(smoke(root, "direct", "pipeline.weights=direct"))) == last_weights(first)


@clustered
@pytest.mark.long
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_that_loses_its_learner_goes_on(first: Path, root: Path, staleness: int) -> None:
    name, option = f"direct-losing-{staleness}", f"pipeline.staleness={staleness}"
    folder, run = root / name, start(root, name, option, "pipeline.weights=direct")
    wait_for(lambda: rounds(folder) > 0, run)
    for each in ("ray::RayTrainWorker", "ray::StudentRolloutWorker"):  # at either end NIXL is at work
        (process,) = actors(run, each)
        assert any("plugin_UCX" in library.path for library in process.memory_maps())
    kill_in_mid_round(run, "ray::WeightStore")
    wait_for(lambda: rounds(folder) > 2, run)
    kill_in_mid_round(run, "ray::RayTrainWorker")
    output = run.communicate(timeout=DEADLINE)[0].decode()
    assert run.returncode == 0, output
    assert last_weights(folder) == (plain_weights(smoke(root, "plain", option)) if staleness else last_weights(first))
    lost = summary(folder)["notes"]["lost"]
    assert lost["learner"] == lost["weight store"] == 1
