"""The critic: what an episode is still worth. It is told the agreement so far, and is of no use at deployment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from redif_ray.adaptive.observation import BOUND
from redif_ray.adaptive.policy import mlp

QUICK = 10.0  # what the rows' learning rate is above the network's


def squeezed(agreement: np.ndarray) -> np.ndarray:
    """Agreement in units of the price, any size, as an entry of an observation."""
    return np.clip(np.sign(agreement) * np.log1p(np.abs(agreement)), -BOUND, BOUND)


class Critic(nn.Module):
    """From observations [B, size + 1] to values [B], in units of the price.

    By the number of calls, a share of the agreement so far and a constant; the network adds the rest. Whoever stops
    gets that agreement exactly, so what a decision changes is not drowned by how hard an image is.
    """

    def __init__(self, size: int, steps: int, max_calls: int) -> None:
        super().__init__()
        share = (torch.arange(max_calls, dtype=torch.float32) / (steps - 1)).clamp(max=1)
        self.rows = nn.Parameter(torch.stack([share, torch.zeros(max_calls)], 1) / QUICK)
        self.network = mlp(size + 1, 1)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, observations: Tensor) -> Tensor:
        calls, told = observations[:, -1 - len(self.rows) : -1], observations[:, -1]
        agreement = told.sign() * torch.expm1(told.abs())
        share, constant = (QUICK * calls @ self.rows).unbind(1)
        return share * agreement + constant + self.network(observations).squeeze(1)
