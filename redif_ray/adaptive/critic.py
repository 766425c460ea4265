"""The critic, which predicts the reward that an episode still brings.

The critic observes the agreement so far, which is unknown at deployment, so it serves training alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from redif_ray.adaptive.observation import BOUND
from redif_ray.adaptive.policy import mlp

QUICK = 10.0  # factor by which the rows learn faster than the network


def squeezed(agreement: np.ndarray) -> np.ndarray:
    """Compress agreement, in units of the price, to sign(a) log(1 + |a|), clipped to [-BOUND, BOUND] as observed."""
    return np.clip(np.sign(agreement) * np.log1p(np.abs(agreement)), -BOUND, BOUND)


class Critic(nn.Module):
    """Map observations [B, size + 1] to values [B], in units of the price.

    A value is a share of the agreement so far plus a constant, both by the number of calls, plus the network's output.
    An agent that stops earns exactly this agreement, so the critic's baseline removes how hard an image is, and the
    effect of a decision stands out.
    """

    def __init__(self, size: int, steps: int, max_calls: int) -> None:
        super().__init__()
        share = (torch.arange(max_calls, dtype=torch.float32) / (steps - 1)).clamp(max=1)
        self.rows = nn.Parameter(torch.stack([share, torch.zeros(max_calls)], 1) / QUICK)
        self.network = mlp(size + 1, 1)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, observations: Tensor) -> Tensor:
        calls, compressed = observations[:, -1 - len(self.rows) : -1], observations[:, -1]
        agreement = compressed.sign() * torch.expm1(compressed.abs())
        share, constant = (QUICK * calls @ self.rows).unbind(1)
        return share * agreement + constant + self.network(observations).squeeze(1)
