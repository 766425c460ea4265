"""Noise that a device draws is the CPU's: the same words, and normals within one unit in the last place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from second_device import DEVICES, WAITS

from redif_ray.diffusion import device_noise, noise
from redif_ray.diffusion.noise import Stream

LARGE = 2**64 - 1


@pytest.mark.parametrize("count", [1, 4, 7, 1000])
@pytest.mark.parametrize(
    "ids",
    [
        {"seed": 0},
        {"seed": 9, "round": 3, "step": 2},
        {"seed": LARGE, "round": 2**32 - 1, "step": LARGE},
        {"seed": 0xD2E7470EE14C6C93, "step": 1 << 63},
    ],
    ids=["zeros", "small", "largest", "sign"],
)
def test_words_are_those_of_the_cpu_to_the_bit(count: int, ids: dict[str, int]) -> None:
    rows = [(0, 0), (5, 1), (LARGE, LARGE), (1 << 63, 3)]
    words = [noise.ids_as_words(Stream.EXPLORATION, group=g, sibling=k, **ids) for g, k in rows]
    found = device_noise.bits(count, words[0][0], [counter for _, counter in words], "cpu")
    for row, (group, sibling) in zip(found.numpy().view(np.uint64), rows, strict=True):
        expected = noise.bits(count, Stream.EXPLORATION, group=group, sibling=sibling, **ids)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_draws_the_same_normals_and_is_not_waited_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, siblings, shape = [4, 4, 4, 9, 9, 2**40], [0, 1, 2, 0, 1, 7], (3, 71, 71)
    ids = {"seed": 11, "round": 5, "step": 1, "antithetic": True}
    expected = noise.exploration_noise(groups, siblings, shape, **ids)
    monkeypatch.setattr(device_noise, "draws_there", lambda _: True)
    WAITS.clear()
    found = noise.exploration_noise(groups, siblings, shape, device=device, **ids)
    assert not WAITS and found.device.type == device and found.dtype == torch.float32
    apart = np.abs(found.cpu().numpy().astype(np.float64) - expected.numpy())
    assert (apart <= np.spacing(np.abs(expected.numpy()))).all()
    assert torch.equal(found[1].cpu(), -found[0].cpu()) and not torch.equal(found[2].cpu(), found[0].cpu())
    start = noise.initial_noise([7], (5,), seed=3, stream=Stream.HELD_OUT, device=device).cpu()
    torch.testing.assert_close(start, noise.initial_noise([7], (5,), seed=3, stream=Stream.HELD_OUT))


def test_only_a_gpu_draws_noise() -> None:
    """MPS has no float64, and the CPU has a generator that is faster."""
    devices = {"cuda": True, "cuda:1": True, "mps": False, "cpu": False}
    assert {device: device_noise.draws_there(device) for device in devices} == devices
