"""Sums over ranks are made and sent in the dtype of what is summed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Linear

from redif_ray.learner.ranks import Ranks
from redif_ray.learning.gradients import Gradients
from redif_ray.learning.step import optimiser_step


class Done:
    def wait(self) -> None: ...


def test_gradients_are_summed_in_float32_and_losses_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process group's call is replaced by one that adds the same tensor of a second rank and notes its dtype."""
    sent: list[tuple[torch.dtype, int]] = []

    def all_reduce(tensor: Tensor, *, async_op: bool) -> Done:
        sent.append((tensor.dtype, tensor.numel()))
        tensor.mul_(2)
        return Done()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    network = Linear(3, 2)
    gradients = Gradients(torch.optim.SGD(network.parameters(), lr=0.0), Ranks(0, 2).all_reduce)
    network.weight.grad, network.bias.grad = torch.full((2, 3), 0.1), torch.full((2,), 0.7)
    losses = {"policy": 1 / 3, "anchor": 0.0}
    norm = optimiser_step(gradients, losses, 1e9, "here")
    assert sent == [(torch.float32, 8), (torch.float64, 2)]
    assert norm == pytest.approx((6 * 0.2**2 + 2 * 1.4**2) ** 0.5, rel=1e-6)


def test_a_sum_of_two_ranks_is_the_float64_sum_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 holds the sum of two float32 numbers closely enough that its rounding is that of the exact sum."""
    generator = torch.Generator().manual_seed(0)
    scales = 10.0 ** torch.randint(-12, 3, (2, 100_000), generator=generator)
    own, other = (torch.randn(2, 100_000, generator=generator) * scales).float()
    expected = (own.double() + other.double()).float()
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, async_op: tensor.add_(other) is not None and Done())
    Ranks(0, 2).sum([own])
    assert torch.equal(own, expected)
