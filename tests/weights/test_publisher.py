"""Weights that are sent to the store and come back; the store is in this process, and Ray passes on its arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch

from redif_ray.checkpoint import weights_sha256
from redif_ray.weights.publisher import Publisher, fetch
from redif_ray.weights.store import StaleWeightsError, WeightStore

WEIGHTS = {
    "norm": torch.tensor([1.0000001, -0.3]),
    "linear": torch.tensor([[3.1415927, 1e-30], [float(2**100), -1.0]]),
    "conv": torch.tensor([0.1, 65504.0]),
}
DTYPES = {"linear": torch.bfloat16, "conv": torch.float16}


class Handle:
    """The store as an actor's handle has it."""

    def __init__(self, keep: int = 4) -> None:
        self.store, self.runner = WeightStore(keep), asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = staticmethod(lambda *arguments: self.runner.run(getattr(self.store, name)(*arguments)))

        return Method


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Handle]:
    for name in ("put", "get"):
        monkeypatch.setattr(ray, name, lambda given: given)
    found = Handle()
    yield found
    found.runner.close()


@pytest.mark.parametrize("dtypes", [None, {}, DTYPES])
def test_weights_arrive_in_the_dtypes_they_travel_in_under_the_checksum_of_those_kept(
    handle: Handle, dtypes: dict[str, torch.dtype] | None
) -> None:
    checksum = Publisher(handle).publish("policy-3", WEIGHTS, dtypes)
    found, named = fetch(handle, "policy-3")
    assert checksum == named == weights_sha256(WEIGHTS)
    assert found.keys() == WEIGHTS.keys()
    for name, value in found.items():
        expected = WEIGHTS[name].to((dtypes or {}).get(name, torch.float32))
        assert value.dtype == expected.dtype and torch.equal(value, expected)


def test_a_lost_store_is_given_what_it_had_and_nothing_that_is_on_its_way(handle: Handle) -> None:
    publisher = Publisher(handle)
    for version in range(3):
        publisher.publish(f"policy-{version}", WEIGHTS, DTYPES)
    publisher.forget(before=1)
    before, handle.store = handle.store, WeightStore()
    publisher.look_after()
    assert handle.store.entries.keys() == {"policy-1", "policy-2"}
    assert all(handle.store.entries[key] == before.entries[key] for key in handle.store.entries)


def test_a_publication_that_failed_is_an_error_of_who_waits(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(handle)
    monkeypatch.setattr(WeightStore, "publish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publisher.publish("policy-0", WEIGHTS)
    with pytest.raises(ZeroDivisionError):
        publisher.look_after()


def test_who_asks_for_what_a_restarted_learner_makes_again_waits(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older learners' later versions are neither handed out nor called gone."""
    publisher = Publisher(handle)
    for version in range(8):
        publisher.publish(f"policy-{version}", WEIGHTS)
    with pytest.raises(StaleWeightsError, match="policy-2 are gone"):
        fetch(handle, "policy-2")
    publisher.restart(after=1)
    monkeypatch.setattr("redif_ray.weights.store.WAIT_SECONDS", 0.01)
    for version in (2, 7):
        with pytest.raises(StaleWeightsError, match="not published within"):
            fetch(handle, f"policy-{version}")
    with pytest.raises(StaleWeightsError, match="policy-1 are gone"):
        fetch(handle, "policy-1")
    publisher.publish("policy-2", {"w": torch.ones(1)})
    assert fetch(handle, "policy-2")[0]["w"].tolist() == [1.0]
