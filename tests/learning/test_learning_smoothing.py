"""The gradient of a smoothed reward from scores alone, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from redif_ray.learning.smoothing import directions, mirrored, smoothed_gradient

SHAPE = (1, 3, 4)
X = torch.linspace(-1, 1, 12).reshape(SHAPE)


def estimate(reward: object, x: Tensor, std: float, *, group: int, count: int) -> Tensor:
    z = directions(group, count, x.shape, seed=0, round=0)
    return smoothed_gradient(reward(mirrored(x, z, std)), z, std)  # type: ignore[operator]


def test_directions_are_a_frame_that_ids_decide() -> None:
    z = directions(3, 5, SHAPE, seed=1, round=2).flatten(1).double()
    torch.testing.assert_close(z @ z.T, 12 * torch.eye(5, dtype=torch.float64), atol=1e-5, rtol=0)
    assert torch.equal(z, directions(3, 5, SHAPE, seed=1, round=2).flatten(1).double())
    for other in ({"group": 4}, {"seed": 2}, {"round": 3}):
        ids = {"group": 3, "seed": 1, "round": 2} | other
        again = directions(ids["group"], 5, SHAPE, seed=ids["seed"], round=ids["round"])
        assert not torch.allclose(z.float(), again.flatten(1))
    for count in (0, 13):
        with pytest.raises(ValueError, match=f"{count} directions in 12 dimensions; expected 1 to 12"):
            directions(0, count, SHAPE, seed=0, round=0)


def test_a_whole_frame_has_the_gradient_of_a_quadratic_reward() -> None:
    """The mirror images cancel the curvature, and D orthogonal directions leave out nothing."""

    def reward(images: Tensor) -> Tensor:
        return -(images - 0.3).square().flatten(1).sum(1)

    found = estimate(reward, X, 0.1, group=7, count=12)
    torch.testing.assert_close(found, -2 * (X - 0.3), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 3])
def test_the_estimate_is_unbiased_for_a_reward_without_a_gradient(count: int) -> None:
    """R is 1 where the first coordinate is positive: J is the share of a ball of radius S sqrt(3) on that side."""
    std, groups, x = 0.4, 20_000, torch.tensor([0.2, -0.5, 0.9])
    radius = std * math.sqrt(3)
    found = torch.stack(
        [estimate(lambda images: (images[:, 0] > 0).float(), x, std, group=g, count=count) for g in range(groups)]
    )
    expected = torch.tensor([3 / (4 * radius) * (1 - (0.2 / radius) ** 2), 0.0, 0.0])
    error = found.std(0) / math.sqrt(groups)
    assert bool(((found.mean(0) - expected).abs() < 4 * error).all())
    assert bool((error < 0.02).all())


@pytest.mark.slow
def test_orthogonal_directions_vary_less_than_independent_ones() -> None:
    """For a linear reward the variance of H orthogonal directions is D / H - 1, and of others more, (D + 1) / H."""
    slope = torch.ones(12).reshape(SHAPE)

    def reward(images: Tensor) -> Tensor:
        return (images * slope).flatten(1).sum(1)

    together = torch.stack([estimate(reward, X, 0.1, group=g, count=6) for g in range(2000)])
    variance = float((together - slope).square().flatten(1).sum(1).mean()) / 12
    assert variance == pytest.approx(12 / 6 - 1, rel=0.1)  # independent ones: 13 / 6


def test_the_first_direction_may_be_a_guess() -> None:
    """It lies along the guess, the others stay orthogonal to it, and a guess of 0 changes nothing."""
    z = directions(3, 4, SHAPE, seed=1, round=2, guess=X).flatten(1).double()
    torch.testing.assert_close(z @ z.T, 12 * torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0)
    assert float(torch.cosine_similarity(z[0], X.flatten().double(), dim=0)) ** 2 == pytest.approx(1)
    drawn = directions(3, 4, SHAPE, seed=1, round=2)
    assert torch.equal(directions(3, 4, SHAPE, seed=1, round=2, guess=torch.zeros(SHAPE)), drawn)
    assert not torch.allclose(drawn.flatten(1).double(), z)


def test_along_a_guess_the_estimate_is_the_projection_of_the_gradient() -> None:
    """One pair along the gradient finds it whole; any pairs find what of it lies in their span."""

    def reward(images: Tensor) -> Tensor:
        return -(images - 0.3).square().flatten(1).sum(1)

    gradient = -2 * (X - 0.3)
    for guess, count in ((0.3 - X, 1), (X, 1), (X.flip(2), 5)):
        z = directions(7, count, SHAPE, seed=0, round=0, guess=guess)
        found = smoothed_gradient(reward(mirrored(X, z, 0.1)), z, 0.1, guessed=True)
        frame = z.flatten(1) / math.sqrt(12)
        expected = (frame.T @ (frame @ gradient.flatten())).reshape(SHAPE)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    along = directions(7, 1, SHAPE, seed=0, round=0, guess=0.3 - X)
    exact = smoothed_gradient(reward(mirrored(X, along, 0.1)), along, 0.1, guessed=True)
    torch.testing.assert_close(exact, gradient, atol=1e-4, rtol=1e-4)
