from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redif_ray.diffusion import solvers
from redif_ray.diffusion.levels import Level, VariancePreserving, like
from redif_ray.diffusion.schedules import Schedule, build
from redif_ray.diffusion.transition import Prediction
from redif_ray.learning.draft import draft_loss

X = torch.tensor([[0.7, -1.1], [0.2, 1.6], [-0.4, 0.5]], dtype=torch.float64)
SCALE = {"scale": torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)}


def schedule(steps: int = 3) -> Schedule:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return build(VariancePreserving(torch.cumprod(1 - betas, 0)), steps, "uniform_trailing")


class Student:
    """x0_hat = scale tanh(w_k x), one weight a level; counts its calls."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.calls = weights, 0

    def __call__(self, x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
        self.calls += 1
        step = int(torch.nonzero(schedule().levels.timestep[:3] == level.timestep))
        x0 = encoded["scale"][:, None] * torch.tanh(self.weights[step] * x)
        return Prediction(x0, (x - like(level.alpha, x) * x0) / like(level.sigma, x))


def reward(x: Tensor) -> Tensor:
    return -(x - 0.3).square().sum(1)


def weights() -> Tensor:
    return torch.tensor([0.9, -0.6, 1.3], dtype=torch.float64, requires_grad=True)


def test_value_is_the_euler_sampler_and_gradient_that_of_finite_differences() -> None:
    with torch.no_grad():
        student = Student(weights())
        sample = solvers.euler(lambda x, level: student(x, level, SCALE), X, schedule())
    torch.testing.assert_close(draft_loss(Student(weights()), schedule(), X, SCALE, reward).detach(), -reward(sample))
    assert torch.autograd.gradcheck(lambda w: draft_loss(Student(w), schedule(), X, SCALE, reward), weights())


@pytest.mark.parametrize("last", [1, 2, 3])
def test_last_steps(last: int) -> None:
    """Truncated: the gradient of the last k steps' weights is the full one's, and there is no other."""
    gradients, calls = [], []
    for k in (None, last):
        w = weights()
        student = Student(w)
        loss = draft_loss(student, schedule(), X, SCALE, reward, k).sum()
        calls.append(student.calls)
        gradients.append(torch.autograd.grad(loss, w)[0])
        calls.append(student.calls)
    torch.testing.assert_close(gradients[1][-last:], gradients[0][-last:])
    assert not gradients[1][:-last].any() and bool((gradients[0].abs() > 1e-3).all())
    assert calls == [3, 6, 3, 3 + last]  # every step with a gradient is recomputed
    w = weights()
    student = Student(w)
    kept = torch.autograd.grad(draft_loss(student, schedule(), X, SCALE, reward, last, recompute=False).sum(), w)[0]
    assert torch.equal(kept, gradients[1]) and student.calls == 3


def test_what_cannot_be_back_propagated_is_refused() -> None:
    for last in (0, 4):
        with pytest.raises(ValueError, match=rf"last_steps={last}: expected a value in 1..3"):
            draft_loss(Student(weights()), schedule(), X, SCALE, reward, last)
    with pytest.raises(ValueError, match="differentiable"):
        draft_loss(Student(weights()), schedule(), X, SCALE, lambda x: reward(x.detach()))
    with pytest.raises(ValueError, match=r"\[3, 2\]; expected \[3\]"):
        draft_loss(Student(weights()), schedule(), X, SCALE, lambda x: x)
