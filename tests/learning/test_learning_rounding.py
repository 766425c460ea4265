"""A network that rounds otherwise in the update than it did in the rollout, as in 16 bits and on GPUs."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from learning_toy import FULL, Tiny, change, flat, schedule, tiny_round, updater
from torch import Tensor

from redif_ray.config import Learner, load
from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.transition import Prediction
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.policy import RatioError, replayed
from redif_ray.learning.rounding import images_as_sent, images_received

CLIP = 1e-4


class Rounding(Tiny):
    """Off by what no two calls of a real one have in common, and always the same for one input."""

    def predict(self, x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
        exact = super().predict(x, level, encoded)
        return Prediction(exact.x0 * (1 + 4e-3 * torch.sin(1e4 * x)), exact.eps * (1 + 4e-3 * torch.sin(2e4 * x)))


def as_it_sees_it(batch: RoundBatch, stds: Tensor) -> RoundBatch:
    """The round with the means and densities that `Rounding` has there."""
    means, log_probs, _ = replayed(Rounding().predict, batch, schedule(), stds, batch.rows, 100)
    return dataclasses.replace(batch, means=means, log_probs=log_probs)


def run(
    batch: RoundBatch,
    stds: Tensor,
    config: Learner,
    behaviour: AbstractContextManager[None] | None = None,
    **options: Any,
) -> tuple[Tensor, dict[str, float]]:
    model = Rounding()
    before = flat(model)
    metrics = updater(model, stds, config, ratio_tolerance=0.02, **options).run(
        batch, round=0, seed=0, lr=0.1, behaviour=behaviour
    )
    return flat(model) - before, metrics


@pytest.mark.parametrize("loss", ["ppo_clip", "grpo_guard", "reinforce"])
@pytest.mark.parametrize("more", [{}, {"minibatch": 5, "inner_epochs": 2}], ids=["one step", "eight"])
def test_ratios_are_to_what_the_network_itself_makes_of_the_round(loss: str, more: dict[str, int]) -> None:
    batch, stds = tiny_round(Tiny())
    config = Learner(loss=loss, clip=CLIP, max_grad_norm=FULL, **more)
    expected, _ = run(as_it_sees_it(batch, stds), stds, config)
    found, metrics = run(batch, stds, config, rounds_apart=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected.norm() > 1e-3 and metrics["fresh_log_ratio_0"] > 2 * CLIP
    if not more:
        assert metrics["clip_fraction"] == 0 and metrics["ratio_max_deviation"] == 0
        assert metrics["network_calls_forward"] == 2 * 16  # the check and the step: what played is computed but once
    else:
        assert metrics["network_calls_forward"] == 16 + 2 * 16


def test_else_half_of_the_pairs_are_clipped_by_chance() -> None:
    batch, stds = tiny_round(Tiny())
    config = Learner(clip=CLIP, max_grad_norm=FULL)
    own, metrics = run(batch, stds, config)
    right, _ = run(batch, stds, config, rounds_apart=True)
    assert metrics["clip_fraction"] > 0.3 and (own - right).norm() > 0.3 * right.norm()


def test_weights_that_are_not_its_own_are_computed_again() -> None:
    """One step, of a round that other weights played: its ratios are not 1, and are to those weights."""
    batch, stds = tiny_round(Tiny())
    config = Learner(clip=0.5, max_grad_norm=FULL)
    _, metrics = run(batch, stds, config, nullcontext(), rounds_apart=True)
    assert metrics["network_calls_forward"] == 16 + 16
    assert metrics["ratio_max_deviation"] < 1e-6  # the block is empty: they are the same after all


def test_what_is_more_than_rounding_is_noticed() -> None:
    batch, stds = tiny_round(Tiny())
    batch.log_probs[0] += 0.1
    with pytest.raises(RatioError, match=r"step 0: .* expected at most 0\.02"):
        run(batch, stds, Learner(), rounds_apart=True)


def test_where_it_does_not_nothing_changes() -> None:
    batch, stds = tiny_round(Tiny())
    config = Learner(max_grad_norm=FULL)
    apart, together = (change(Tiny(), batch, stds, config, rounds_apart=apart) for apart in (True, False))
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-7)


def test_images_travel_in_eight_bits_where_networks_compute_in_16() -> None:
    images = np.linspace(0, 1, 2 * 3 * 50 * 50, dtype=np.float32).reshape(2, 3, 50, 50)
    half, learned = "networks.precision=bfloat16", "reward.terms={mse: {}, discriminator: {}}"
    for dtype, given in ((np.float32, []), (np.uint8, [half]), (np.float16, [half, learned])):
        sent = images_as_sent(images, load("smoke", given))
        assert sent.dtype == dtype
        found = images_received(sent)
        assert found.dtype == torch.float32 and found.shape == images.shape
        assert float((found - torch.from_numpy(images)).abs().max()) <= {1: 0.5001 / 255, 2: 3e-4, 4: 0}[sent.itemsize]
        assert found.min() == 0 and found.max() == 1
    beyond = images_as_sent(np.array([-0.01, 1.01], np.float32), load("smoke", [half]))
    assert beyond.tolist() == [0, 255]  # a decoder of one's own that goes too far
