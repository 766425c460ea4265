"""Which versions a learner keeps and publishes, and that a checkpoint brings back those and no others."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import load
from redif_ray.planning.rounds import Phases
from redif_ray.weights.versions import Versions


def versions(staleness: int) -> Versions:
    return Versions(Phases(load("smoke", [f"pipeline.staleness={staleness}"])), publisher=None)


def weights(number: int) -> dict[str, Tensor]:
    return {"w": torch.full((2,), float(number))}


def made_by(kept: Versions, round: int) -> float | None:
    found = kept.policy(round)
    return None if found is None else float(found["w"][0])


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_a_round_finds_the_weights_that_rolled_it_out(staleness: int) -> None:
    kept = versions(staleness)
    for after in range(5):
        kept.add(after, {"policy": weights(after), "discriminator": weights(10 + after)})
        assert made_by(kept, after) == (max(0, after - staleness) if staleness and after else None)
        assert len(kept.stale) == 2 * min(after + 1, staleness + 1) * bool(staleness)
    learned = kept.learned(4)
    assert learned is None if not staleness else float(learned["w"][0]) == 14 - staleness


def test_a_checkpoint_brings_them_back() -> None:
    before, after = versions(2), versions(2)
    for round in range(4):
        before.add(round, {"policy": weights(round)})
    tensors, keys = before.state(3)
    assert keys == ["policy-1", "policy-2"]  # the third is the student itself
    after.load(tensors, keys)
    after.add(3, {"policy": weights(3)})
    assert [made_by(after, round) for round in (3, 4, 5)] == [1, 2, 3]


class Slow:
    """A publisher that takes nothing before it is let."""

    def __init__(self, plan: Phases) -> None:
        self.plan, self.let, self.calls = plan, threading.Event(), list[Any]()

    def publish(self, key: str, weights: Mapping[str, Tensor], dtypes: Any) -> str:
        assert self.let.wait(10)
        self.calls.append((key, dtypes))
        return weights_sha256(weights)

    def restart(self, after: int) -> None:
        self.calls.append(("restart", after))

    def forget(self, before: int) -> None:
        self.calls.append(("forget", before))


def test_publishing_runs_beside_the_learner_in_the_order_of_versions() -> None:
    plan, dtypes = Phases(load("smoke", ["pipeline.staleness=1"])), {"w": torch.bfloat16}
    slow = Slow(plan)
    kept = Versions(plan, slow, dtypes)  # type: ignore[arg-type]
    for after in range(3):
        kept.add(after, {"discriminator": weights(10), "policy": weights(after)})  # nobody let it publish yet
        kept.deploy(after, weights(after))
    slow.let.set()
    assert kept.checksum(2) == weights_sha256(weights(2))
    kept.thread.shutdown()
    published = [(key, sent) for key, sent in slow.calls if key != "forget"]
    assert published == [
        (f"{kind}-{after}", None if kind == "discriminator" else dtypes)
        for after in range(3)
        for kind in ("discriminator", "policy", "deploy")
    ]
    assert [before for key, before in slow.calls if key == "forget"] == [0, 0, 1]
    assert kept.checksums.keys() == {f"{k}-{v}" for k in ("discriminator", "policy", "deploy") for v in (1, 2)}


def test_a_learner_that_begins_waits_until_its_versions_are_published() -> None:
    plan = Phases(load("smoke", ["pipeline.staleness=1"]))
    slow = Slow(plan)
    kept = Versions(plan, slow)  # type: ignore[arg-type]
    kept.load({"stale/policy-4/w": torch.ones(2)}, ["policy-4"])
    slow.let.set()
    kept.begin(5, {"policy": weights(5)})
    assert [key for key, _ in slow.calls][:3] == ["restart", "policy-4", "policy-5"]
    assert slow.calls[0] == ("restart", 5)
    assert kept.checksum(4) == weights_sha256({"w": torch.ones(2)})


def test_a_rank_that_does_not_publish_knows_the_checksums_too() -> None:
    kept = versions(0)
    kept.begin(0, {"policy": weights(7)})
    kept.deploy(0, {})
    assert kept.checksum(0) == weights_sha256(weights(7)) and kept.checksums.keys() == {"policy-0"}
