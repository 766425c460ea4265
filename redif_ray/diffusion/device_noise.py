"""The numbers of `noise.py` drawn on a device, all rows of a batch at once.

64-bit integers are multiplied and shifted exactly everywhere, so the words of Philox 4 x 64 with 10 rounds (Salmon et
al., SC 2011) equal the CPU's. The normals that are made of them differ by a unit in the last place of float32 at most,
because a device has its own log, sine and cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from redif_ray.diffusion.transfer import sent

ROUNDS = 10
FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # of the two words of the key, after each round
LOW = 0xFFFFFFFF


def draws_there(device: str | torch.device) -> bool:
    """Tell whether noise is drawn on this device. MPS has no float64."""
    return torch.device(device).type == "cuda"


def bits(count: int, key: Sequence[int], counters: Sequence[Sequence[int]], device: str | torch.device) -> Tensor:
    """Return the first words after each counter, [rows, count] int64 with the bits of the uint64 of `noise.bits`.

    key: two words. counters: four words of each row, the first of which is 0 before the first draw.
    """
    blocks, (first, second) = -(-count // 4), key
    rest = torch.tensor([[_signed(word) for word in counter[1:]] for counter in counters])
    number = torch.arange(1, blocks + 1, device=device).expand(len(counters), -1)
    state = [number, *(word[:, None].expand(-1, blocks) for word in sent(rest, device).T)]
    for _ in range(ROUNDS):
        (high, low), (other_high, other_low) = _product(FACTORS[0], state[0]), _product(FACTORS[1], state[2])
        state = [other_high ^ state[1] ^ _signed(first), other_low, high ^ state[3] ^ _signed(second), low]
        first, second = (first + STEPS[0]) % 2**64, (second + STEPS[1]) % 2**64
    return torch.stack(state, 2).reshape(len(counters), -1)[:, :count]


def normals(count: int, key: Sequence[int], counters: Sequence[Sequence[int]], device: str | torch.device) -> Tensor:
    """Return the numbers of `noise.normal` after each counter, [rows, count] float32; see `bits`."""
    pairs = (count + 1) // 2
    words = bits(2 * pairs, key, counters, device)
    u = ((words >> 11) & (2**53 - 1)).double() * 2.0**-53
    radius, angle = torch.sqrt(-2 * torch.log(1 - u[:, :pairs])), 2 * math.pi * u[:, pairs:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :count].float()


def _product(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 64 bits of the products of 64-bit words without a sign."""
    high, low = factor >> 32, factor & LOW
    above, below = _upper(words), words & LOW
    middle = high * below + _upper(low * below)
    other = low * above + (middle & LOW)
    return high * above + _upper(middle) + _upper(other), words * _signed(factor)


def _upper(words: Tensor) -> Tensor:
    """Return the upper 32 of 64 bits, which a shift of a negative number would fill with its sign."""
    return (words >> 32) & LOW


def _signed(word: int) -> int:
    """Return the int64 that has the bits of a uint64."""
    return word - 2**64 if word >= 2**63 else word
