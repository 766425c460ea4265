"""Gradients are summed over ranks in buckets, while the last backward pass goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from thread_ranks import run_ranks
from torch import Tensor
from torch.nn import Linear, Module, Parameter, Sequential, Tanh

from redif_ray.learning import gradients
from redif_ray.learning.gradients import AllReduce, Gradients, buckets, copies

LAYER = 4 * (8 * 8 + 8)  # bytes of a layer's weights


def network() -> Sequential:
    torch.manual_seed(0)
    return Sequential(Linear(8, 8), Tanh(), Linear(8, 8), Tanh(), Linear(8, 8), Tanh(), Linear(8, 8))


def made(model: Sequential, all_reduce: AllReduce | None = None, scale: float = 1.0) -> Gradients:
    return Gradients(torch.optim.SGD(model.parameters(), lr=0.1), all_reduce, scale)


def found(model: Sequential) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", LAYER)


class Noted:
    """A sum over one rank that notes what is complete when a bucket is begun, and how many are on their way."""

    def __init__(self, model: Sequential) -> None:
        self.model, self.complete, self.most, self.way = model, list[int](), 0, 0

    def __call__(self, tensors: list[Tensor]) -> None:
        self.begin(tensors)()

    def begin(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        self.complete.append(len(found(self.model)))
        self.way += 1
        self.most = max(self.most, self.way)

        def end() -> list[Tensor]:
            self.way -= 1
            return [t.clone() for t in tensors]

        return end


def test_a_bucket_is_sent_before_the_backward_pass_is_over() -> None:
    model = network()
    own = made(model, noted := Noted(model))
    x = torch.randn(3, 8)
    own.add(model(x).square().sum(), last=False)
    assert not noted.complete
    for parameter in model.parameters():
        parameter.grad = None  # so that complete gradients can be counted
    own.add(model(x).square().sum(), last=True)
    assert noted.complete == [2, 4, 6, 8] and noted.most == noted.way == gradients.ON_THEIR_WAY
    own.sum()
    own.sum()
    assert len(noted.complete) == 4 and noted.way == 0


def test_gradients_are_those_of_one_rank_with_all_rows() -> None:
    """Three ranks: one has two passes, one has one, one has no row at all."""
    x, scale = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), 2.0**16
    alone, *models = (network() for _ in range(4))
    alone(x).square().sum().backward()

    def rank(number: int, all_reduce: AllReduce) -> list[Tensor]:
        model = models[number]
        own = made(model, all_reduce, scale)
        parts = ([x[:2], x[2:4]], [x[4:]], [])[number]
        for i, part in enumerate(parts, 1):
            own.add(model(part).square().sum() * scale, last=i == len(parts))
        own.sum()
        return found(model)

    ranks = run_ranks(rank, 3)
    for first, second, third, expected in zip(*ranks, found(alone), strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)
        torch.testing.assert_close(first, expected)


class Table(Module):
    """A weight whose gradient torch keeps in the memory of the one that goes on to another, as in SANA's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.middle, self.late = (Parameter(torch.randn(6, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = (x @ self.early + x @ self.middle).reshape(1, 6, 6)
        return (self.late[None] + y).square().sum()


def test_a_sum_does_not_reach_gradients_that_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 1)
    monkeypatch.setattr(gradients, "ON_THEIR_WAY", 1)  # the last weight's sum ends before the first has a gradient
    x = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))

    def network() -> Table:
        torch.manual_seed(0)
        return Table()

    alone, *models = network(), network(), network()
    sum(alone(row) for row in x).backward()

    def rank(number: int, all_reduce: AllReduce) -> dict[str, Tensor]:
        model = models[number]
        own = Gradients(torch.optim.SGD(model.parameters()), all_reduce)
        own.add(model(x[number]), last=True)
        own.sum()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    for found in run_ranks(rank):
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad)


def test_what_trains_in_no_pass_has_a_gradient_of_zero() -> None:
    model = network()
    own = made(model, noted := Noted(model))
    own.add(model[:3](torch.ones(1, 8)).sum(), last=True)
    assert noted.complete == []  # the first bucket is that of the last layer, and all ranks keep to the order
    own.sum()
    assert len(noted.complete) == 4 and not found(model)[-1].any() and found(model)[0].any()


def test_buckets_hold_all_weights_once() -> None:
    parameters = list(network().parameters())
    assert [p for bucket in buckets(parameters) for p in bucket] == parameters[::-1]
    assert copies(parameters) == 2 * LAYER
    assert copies([]) == 0
