"""Which versions a learner keeps for rounds to come, and that a checkpoint brings back those and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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
