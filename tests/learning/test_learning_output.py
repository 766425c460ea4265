"""The gradient through the student's sampler, one step at a time, and the update that it makes."""

from __future__ import annotations

import math

import pytest
import torch
from test_learning_draft import SCALE, Student, X, reward, schedule, weights
from torch import Tensor

from redif_ray.config import Term
from redif_ray.diffusion import solvers
from redif_ray.diffusion.transition import transition_mean
from redif_ray.learning.draft import draft_loss
from redif_ray.learning.gradients import Gradients
from redif_ray.learning.output import OutputUpdater, ascent, chain
from redif_ray.learning.policy import RatioError


def rolled_out(w: Tensor) -> Tensor:
    """The states of the deterministic sampler, [N + 1, B, D]."""
    student, grid, states = Student(w.detach()), schedule(), [solvers.initial(schedule(), X)]
    for k in range(grid.steps):
        states.append(transition_mean(student(states[-1], grid[k], SCALE), grid[k + 1], torch.zeros(())))
    return torch.stack(states)


def slope(states: Tensor) -> Tensor:
    x = states[-1].clone().requires_grad_()
    return torch.autograd.grad(reward(x).sum(), x)[0]


def of(w: Tensor) -> Gradients:
    return Gradients(torch.optim.SGD([w]))


def test_steps_one_at_a_time_have_the_gradient_of_the_whole_sampler() -> None:
    w, states = weights(), rolled_out(weights())
    student = Student(w)
    apart = chain(student, schedule(), states, SCALE, -slope(states), of(w), last=True)
    expected = torch.autograd.grad(draft_loss(Student(w2 := weights()), schedule(), states[0], SCALE, reward).sum(), w2)
    torch.testing.assert_close(w.grad, expected[0])
    assert float(apart) < 1e-12 and student.calls == 3


def test_the_straight_gradient_takes_each_step_alone() -> None:
    """Finite differences: the weight of a step moves its own mean, and what follows counts as the identity."""
    w, states, grid = weights(), rolled_out(weights()), schedule()
    cotangent = -slope(states)
    chain(Student(w), grid, states, SCALE, cotangent, of(w), last=True, through_steps=False)

    def mean(step: int, shift: float) -> Tensor:
        moved = w.detach().clone()
        moved[step] += shift
        prediction = Student(moved)(states[step], grid[step], SCALE)
        return transition_mean(prediction, grid[step + 1], torch.zeros(()))

    expected = [float(((mean(k, 1e-6) - mean(k, -1e-6)) * cotangent).sum()) / 2e-6 for k in range(3)]
    assert w.grad is not None and w.grad.tolist() == pytest.approx(expected, rel=1e-5)


def updater(w: Tensor, **more: object) -> OutputUpdater:
    settings: dict[str, object] = {"tolerance": 1e-4, "microbatch": 2, "max_grad_norm": 1e9} | more
    return OutputUpdater(Student(w), torch.optim.SGD([w]), schedule(), 0.1, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_a_step_is_that_of_the_mean_reward(scale: float) -> None:
    """Neither microbatches nor the factor against underflow change it."""
    w, start = weights(), weights().detach()
    states = rolled_out(w)
    metrics = updater(w, loss_scale=scale).run(states, SCALE, slope(states), total=3, round=0, lr=0.1)
    w2 = weights()
    draft_loss(Student(w2), schedule(), states[0], SCALE, reward).mean().backward()
    assert w2.grad is not None
    torch.testing.assert_close(w.detach(), start - 0.1 * w2.grad)
    assert metrics["grad_norm"] == pytest.approx(float(w2.grad.norm()))
    assert metrics["network_calls_forward"] == metrics["network_calls_backward"] == 9


def test_ranks_make_the_step_of_one() -> None:
    """Each rank has some groups, and the sum of their gradients is the gradient of the round."""
    whole, states = weights(), rolled_out(weights())
    updater(whole).run(states, SCALE, slope(states), total=3, round=0, lr=0.1)
    parts, summed = [], weights()
    for rows in (torch.tensor([0, 2]), torch.tensor([1])):
        w = weights()
        own = {"scale": SCALE["scale"][rows]}
        before = w.detach().clone()
        updater(w).run(states[:, rows], own, slope(states)[rows], total=3, round=0, lr=0.1)
        parts.append(w.detach() - before)
    torch.testing.assert_close(whole.detach(), summed.detach() + sum(parts))


def test_states_of_other_weights_are_refused() -> None:
    states, w = rolled_out(weights()), (weights() + 0.3).detach().requires_grad_()
    before = w.detach().clone()
    with pytest.raises(RatioError, match=r"round 4: \|log ratio\| of a fresh round is .* expected at most 0.0001"):
        updater(w).run(states, SCALE, slope(states), total=3, round=4, lr=0.1)
    assert torch.equal(w.detach(), before)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    states, w = rolled_out(weights()), weights()
    bad = slope(states)
    bad[1, 0] = math.nan
    with pytest.raises(FloatingPointError, match="the output loss is nan"):
        updater(w).run(states, SCALE, bad, total=3, round=0, lr=0.1)


def test_terms_are_weighted_and_normalised() -> None:
    gradients = {"a": torch.full((2, 3), 4.0), "b": torch.full((2, 3), 5.0)}
    spreads = {"a": torch.tensor([1.0, 7.0]), "b": torch.tensor([0.0, 0.0])}
    plain, found = ascent(gradients, spreads, {"a": Term(weight=2.0), "b": Term(weight=-1.0)})
    torch.testing.assert_close(plain, torch.full((2, 3), 3.0))
    assert found == {"a": 5.0, "b": 0.0}
    scaled, _ = ascent(gradients, spreads, {"a": Term(weight=2.0, normalise="std"), "b": Term(normalise="std")})
    torch.testing.assert_close(scaled, torch.full((2, 3), 2 * 4 / 5.0))  # b is equal everywhere, and adds nothing
