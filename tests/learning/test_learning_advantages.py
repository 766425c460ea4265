from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.learning.advantages import RunningStatistics, advantages

REWARDS = torch.tensor([[1.0, 2.0, 4.0, 5.0], [10.0, 10.0, 13.0, 19.0], [-3.0, -2.0, -2.0, -1.0]])


def reference(rewards: np.ndarray, kind: str) -> np.ndarray:
    centred = rewards - rewards.mean(1, keepdims=True)
    if kind == "global_std":  # groups are centred, so numpy's own std of the whole is the rms
        return centred / centred.std()
    if kind == "group_std":
        return centred / rewards.std(1, keepdims=True)
    if kind == "batch":
        return (rewards - rewards.mean()) / rewards.std()
    return centred


@pytest.mark.parametrize("kind", ["global_std", "group_std", "mean_only", "batch"])
def test_closed_forms(kind: str) -> None:
    found = advantages(REWARDS, kind, 100.0)
    np.testing.assert_allclose(found.values, reference(REWARDS.double().numpy(), kind), rtol=1e-6)
    assert found.values.dtype == torch.float32 and found.dead_group_fraction == 0


def test_std_is_that_of_the_centred_rewards() -> None:
    centred = REWARDS.numpy() - REWARDS.numpy().mean(1, keepdims=True)
    assert advantages(REWARDS, "mean_only", 5.0).std == pytest.approx(centred.std(), rel=1e-6)
    # Offsets between groups (easy and hard conditions) must not shrink the advantages.
    offset = REWARDS + torch.tensor([[0.0], [1000.0], [-500.0]])
    torch.testing.assert_close(
        advantages(offset, "global_std", 5.0).values, advantages(REWARDS, "global_std", 5.0).values, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["global_std", "group_std", "batch"])
@pytest.mark.parametrize("pair", [False, True])
def test_scale_and_shift_of_the_reward_do_not_matter(kind: str, pair: bool) -> None:
    a = advantages(REWARDS.double(), kind, 5.0, pair_baseline=pair).values
    b = advantages(1e-3 * REWARDS.double() + 2, kind, 5.0, pair_baseline=pair).values
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_clip() -> None:
    found = advantages(REWARDS, "mean_only", 2.0).values
    torch.testing.assert_close(found, (REWARDS - REWARDS.mean(1, keepdim=True)).clamp(-2, 2))


def test_dead_groups_are_zero_and_counted_relative_to_their_magnitude() -> None:
    jitter = torch.tensor([1e-5, -1e-5, 2e-5, -2e-5], dtype=torch.float64)
    rewards = torch.stack([1000 + jitter, jitter, torch.full((4,), -0.7, dtype=torch.float64)])
    for kind in ("group_std", "global_std", "mean_only"):
        found = advantages(rewards, kind, 5.0)
        assert found.dead_group_fraction == pytest.approx(2 / 3)
        assert bool((found.values[[0, 2]] == 0).all()) and bool((found.values[1] != 0).all())
    everything = advantages(torch.full((2, 4), 0.3), "global_std", 5.0)
    assert everything.dead_group_fraction == 1 and everything.std == 0 and not everything.values.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_named(value: float) -> None:
    rewards = REWARDS.clone()
    rewards[1, 2] = value
    with pytest.raises(ValueError, match=r"row 6 \(group 1, sibling 2\)"):
        advantages(rewards, "global_std", 5.0)


@pytest.mark.parametrize("shape", [(12,), (1, 3, 4), (0, 4), (3, 0)])
def test_rewards_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"rewards have shape {re.escape(str(list(shape)))}; expected \[groups"):
        advantages(torch.zeros(shape), "global_std", 5.0)


@pytest.mark.parametrize(("siblings", "pair"), [(1, False), (2, True), (5, True)])
def test_too_few_siblings_for_a_baseline(siblings: int, pair: bool) -> None:
    with pytest.raises(ValueError, match=r"rollout\.siblings"):
        advantages(torch.arange(2.0 * siblings).reshape(2, siblings), "global_std", 5.0, pair_baseline=pair)


def test_values_carry_no_gradient() -> None:
    assert not advantages(REWARDS.clone().requires_grad_(), "global_std", 5.0).values.requires_grad


def test_pair_baseline_leaves_out_the_pair() -> None:
    found = advantages(REWARDS, "mean_only", 100.0, pair_baseline=True).values
    for group, row in enumerate(REWARDS.tolist()):
        for i in range(4):
            others = [r for j, r in enumerate(row) if j // 2 != i // 2]
            assert found[group, i] == pytest.approx(row[i] - sum(others) / len(others), rel=1e-6)


class DdpoTracker:
    """Per-key statistics as DDPO describes them: enter, then whiten by the buffer, or by the batch until it is full."""

    def __init__(self) -> None:
        self.buffers: dict[int, list[float]] = {}

    def __call__(self, rewards: np.ndarray, keys: list[int]) -> np.ndarray:
        for row, key in zip(rewards, keys, strict=True):
            self.buffers[key] = (self.buffers.get(key, []) + row.tolist())[-16:]
        out = np.empty_like(rewards)
        for row, key in enumerate(keys):
            source = np.array(self.buffers[key]) if len(self.buffers[key]) == 16 else rewards
            out[row] = (rewards[row] - source.mean()) / source.std()
        return out


def test_running_statistics_follow_ddpo_and_survive_a_checkpoint() -> None:
    tracker, running = DdpoTracker(), RunningStatistics()
    for step in range(6):
        rewards = noise.normal(18, Stream.CALIBRATION, seed=4, step=step).astype(np.float64).reshape(3, 6) + step
        keys = [0, 1, 0] if step % 2 else [2, 0, 1]
        found = advantages(torch.from_numpy(rewards), "running", 100.0, running=running, keys=keys).values
        np.testing.assert_allclose(found, tracker(rewards, keys), rtol=1e-5)
        restored = RunningStatistics()
        restored.load_state_dict(json.loads(json.dumps(running.state_dict())))
        assert restored.buffers == running.buffers
        running = restored
    with pytest.raises(ValueError, match="size=16"):
        RunningStatistics(8).load_state_dict(running.state_dict())


def test_running_pair_baseline_does_not_know_the_round() -> None:
    running = RunningStatistics(4)
    running.extend(["a"], torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    rewards = torch.tensor([[9.0, 1.0, 2.0, 4.0]])
    found = advantages(rewards, "running", 100.0, pair_baseline=True, running=running, keys=["a"])
    np.testing.assert_allclose(found.values[0], (np.array([9.0, 1, 2, 4]) - 3) / np.std([1, 2, 3, 6]), rtol=1e-6)
    assert list(running.buffers["a"]) == [9, 1, 2, 4]


def test_running_needs_its_state_and_keys() -> None:
    with pytest.raises(ValueError, match="one key for each of 3 groups"):
        advantages(REWARDS, "running", 5.0, running=RunningStatistics(), keys=[1])


def test_antithetic_siblings_bias_the_group_mean_and_not_the_pair_baseline() -> None:
    """x1 = a + S z1, x2 = b x1 + S z2, r = -(x2 - c)^2, antithetic in (z1, z2).

    dJ/da = -2 (ab - c) b and dJ/db = -2 (ab - c) a - 2 b S^2. Under the partner's noise, d ln p / da changes sign, and
    so does the half without z1 of d ln p / db = z2 (a + S z1) / S; the group's mean counts the half with z1, which does
    not, 1 - 2 / K times.
    """
    a, b, c, std, siblings, groups = 0.8, 0.9, 1.5, 0.7, 4, 50_000
    half = torch.from_numpy(noise.normal(2 * groups * siblings // 2, Stream.EXPLORATION, seed=5)).double()
    half = half.reshape(2, groups, siblings // 2)
    z1, z2 = torch.stack([half, -half], 3).flatten(2)
    x1 = a + std * z1
    rewards = -(b * x1 + std * z2 - c).square()
    scores = torch.stack([z1 / std, z2 * x1 / std])
    truth = torch.tensor([-2 * (a * b - c) * b, -2 * (a * b - c) * a - 2 * b * std**2], dtype=torch.float64)
    biased = truth + torch.tensor([0, 2 * b * std**2 * 2 / siblings])

    def estimate(pair: bool) -> tuple[torch.Tensor, torch.Tensor]:
        values = advantages(rewards, "mean_only", 1e9, pair_baseline=pair).values
        each = (values * scores).mean(2)
        return each.mean(1), each.std(1) / math.sqrt(groups)

    paired, error = estimate(True)
    assert bool(((paired - truth).abs() < 4 * error).all())
    naive, error = estimate(False)
    assert bool(((naive - biased).abs() < 4 * error).all())
    assert bool((naive - truth).abs()[1] > 15 * error[1])
