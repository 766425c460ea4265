"""The second device itself: what CUDA refuses it refuses, what it computes is what the CPU computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import second_device
import torch
from torch import Tensor

there = torch.arange(6.0).reshape(2, 3).to(second_device.NAME)
here = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: there + here,
        lambda: here * there,
        lambda: there @ here.T,
        lambda: torch.stack([there, here]),
        lambda: torch.stack([there.sum(), torch.zeros(())]),
        lambda: torch.where(here > 1, there, there),
        lambda: here[there.long()[0]],
        lambda: torch.isin(there, here),
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: there.__setitem__(torch.tensor([0]), here[:1]),
        lambda: torch.randn(2, device=second_device.NAME, generator=torch.Generator()),
        lambda: there.numpy(),
    ],
)
def test_what_cuda_refuses_is_refused(mixed: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"standin|generator|numpy"):
        mixed()


@pytest.mark.parametrize(
    "both",
    [
        lambda x: x * 2 + torch.tensor(3.0),
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x[torch.tensor([True, False])],
        lambda x: x.clone().index_put_((torch.tensor([0]),), x[1:]),
        lambda x: x.clone().copy_(here),
        lambda x: torch.tensor([[1.0, 2.0, 3.0]], device=x.device).expand(2, 3) - x,
        lambda x: torch.full((2,), 2.0, device=x.device) + x.sum(1),
        lambda x: torch.cartesian_prod(torch.arange(2, device=x.device), torch.arange(3, device=x.device)).float(),
        lambda x: torch.nn.functional.linear(x, torch.ones(4, 3, device=x.device)),
    ],
)
def test_what_it_computes_is_right(both: Callable[[Tensor], Tensor]) -> None:
    found = both(there)
    assert isinstance(found, second_device.There) and found.device.type == second_device.NAME
    assert torch.equal(found.cpu(), both(here))


def test_rotations_by_complex_numbers_have_their_gradients() -> None:
    """As rotary embeddings have them, whose backward pass multiplies by conjugates."""

    def gradient(device: str) -> Tensor:
        x = torch.linspace(-1, 1, 24).reshape(3, 4, 2).to(device).requires_grad_()
        turns = torch.polar(torch.ones(4), torch.arange(4.0)).to(device)
        torch.view_as_real(torch.view_as_complex(x) * turns)[..., 0].square().sum().backward()
        assert x.grad is not None
        return x.grad.cpu()

    torch.testing.assert_close(gradient(second_device.NAME), gradient("cpu"))


def test_it_trains() -> None:
    def trained(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3))
        network = torch.nn.Sequential(*layers).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            network(torch.linspace(0, 1 + step, 64).reshape(1, 1, 8, 8).to(device)).square().mean().backward()
            optimizer.step()
        return [p.detach().cpu() for p in network.parameters()]

    for mine, expected in zip(trained(second_device.NAME), trained("cpu"), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "cast",
    [
        lambda layer: layer.float(),
        lambda layer: [setattr(p, "data", p.data.float()) for p in layer.parameters()],
    ],
)
def test_a_parameter_of_16_bits_becomes_float32_in_place(cast: Callable[[torch.nn.Module], Any]) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2, bias=False).to(second_device.NAME, torch.bfloat16)
    weight = layer.weight
    before = weight.detach().cpu().float()
    cast(layer)
    assert layer.weight is weight and weight.dtype == torch.float32
    assert torch.equal(weight.detach().cpu(), before)
    found = layer(there)
    found.sum().backward()
    assert torch.equal(found.detach().cpu(), here @ before.T)
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_nobody_computes_on_it_unasked() -> None:
    assert not torch.accelerator.is_available()
    assert torch.zeros(1).device.type == "cpu"
