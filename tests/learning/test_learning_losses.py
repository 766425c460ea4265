from __future__ import annotations

import math

import pytest
import torch
from learning_toy import values
from torch import Tensor

from redif_ray.diffusion.transition import log_prob
from redif_ray.learning.losses import default_clip, grpo_guard, ppo_clip, reinforce, step_weights

STD = torch.tensor([0.3, 0.5, 0.9, 1.2], dtype=torch.float64)


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Old means, noise and advantages of four pairs, D = 6, float64."""
    return values(24, 1).reshape(4, 2, 3).double(), values(24, 2).reshape(4, 2, 3).double(), values(4, 3).double()


def test_ppo_gradient_at_ratio_one_is_reinforce() -> None:
    old, z, advantage = pairs()
    action = old + STD[:, None, None] * z
    gradients = []
    for kind in ("ppo", "reinforce"):
        mean = old.float().requires_grad_()
        density = log_prob(action.float(), mean, STD)
        if kind == "reinforce":
            loss = reinforce(density, advantage)
        else:
            loss = ppo_clip(density - density.detach(), advantage, 0.1).loss
        gradients += torch.autograd.grad(loss.sum(), mean)
    # The score of a Gaussian, divided by D.
    expected = -advantage[:, None, None] * z / STD[:, None, None] / 6
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [  # the bound holds only where it forbids to gain by moving on
        (2.0, 1.00, -2.0, -2.0),
        (2.0, 1.05, -2.1, -2.0),
        (2.0, 1.30, -2.2, 0.0),
        (2.0, 0.70, -1.4, -2.0),
        (-3.0, 1.00, 3.0, 3.0),
        (-3.0, 0.95, 2.85, 3.0),
        (-3.0, 0.70, 2.7, 0.0),
        (-3.0, 1.30, 3.9, 3.0),
    ],
)
def test_clip_direction(advantage: float, ratio: float, loss: float, slope: float) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    found = ppo_clip(log_ratio, torch.tensor([advantage]), 0.1)
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_ratio)
    assert found.loss.item() == pytest.approx(loss, rel=1e-6)
    assert gradient.item() == pytest.approx(slope * ratio, rel=1e-6)  # d rho / d ln rho = rho
    assert found.clipped.item() == (slope == 0)
    assert not found.log_ratio.requires_grad


def test_guard_drops_scale_and_quadratic_term_of_the_log_ratio() -> None:
    old, z, advantage = pairs()
    new = old + 0.1 * values(24, 4).reshape(4, 2, 3)
    std = STD[:, None, None]
    exact = log_prob(old + std * z, new, STD) - log_prob(old + std * z, old, STD)
    quadratic = (new - old).square().flatten(1).mean(1) / (2 * STD**2)
    found = grpo_guard(new, old, z, advantage, 0.1).log_ratio
    torch.testing.assert_close(found, STD * (exact.double() + quadratic), rtol=1e-4, atol=1e-6)


def test_guard_gradient_is_that_of_ppo_times_the_std() -> None:
    old, z, advantage = pairs()
    mean = old.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(grpo_guard(mean, old, z, advantage, 0.1).loss.sum(), mean)
    torch.testing.assert_close(gradient, -advantage[:, None, None] * z / 6)


@pytest.mark.parametrize("kind", ["ppo_clip", "grpo_guard", "reinforce"])
def test_gradients_against_finite_differences(kind: str) -> None:
    old, z, advantage = pairs()
    std = STD[:, None, None]

    def loss(mean: Tensor) -> Tensor:
        density = -((old + std * z - mean).square() / (2 * std**2)).flatten(1).mean(1)
        if kind == "reinforce":
            return reinforce(density, advantage)
        if kind == "ppo_clip":
            return ppo_clip(density + (z.square() / 2).flatten(1).mean(1), advantage, 0.05).loss
        return grpo_guard(mean, old, z, advantage, 0.05).loss

    mean = (old + 0.2 * values(24, 4).reshape(4, 2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(loss, mean)


def test_step_weights() -> None:
    stds = torch.tensor([0.6, 0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(step_weights(stds, "std"), torch.tensor([1.5, 0.5, 0.0], dtype=torch.float64))
    assert step_weights(stds, "none").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="S > 0"):
        step_weights(torch.zeros(2), "std")


def test_default_clip() -> None:
    assert default_clip(16384) == pytest.approx(1e-4)
    assert default_clip(64) == pytest.approx(1.6e-3)
