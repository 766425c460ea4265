"""The agent's network, without RLlib: what is trained, kept as safetensors and used at deployment.

The mean of an action is a row of a table, by the number of calls made, plus what is learned in units of exploration: by
the number of calls, and by a small network of what is seen. Both start at 0 and the table is a static schedule: so is
the untrained agent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from redif_ray.adaptive.observation import LOGIT

HIDDEN = 64
SURE, DOUBT = 3.0, 0.5  # standard deviations of exploration that an untrained mean is away from the other decision
SPREAD = (0.08, 1.0)  # standard deviations of exploration: of the logit of a fraction, of stopping


def static_table(moves: Sequence[float], max_calls: int) -> Tensor:
    """Of a static schedule with the fractions `moves` [N - 1], N >= 2: row k - 1, [2], is what it does after k calls.

    It doubts whether to make its last call, and whether to stop then: there it explores. Beyond, every move is as the
    last one.
    """
    logits = [math.log(fraction / (1 - fraction)) for fraction in moves]
    rows = [[logit, -SURE] for logit in logits] + [[logits[-1], DOUBT]] * (max_calls - len(logits))
    rows[len(logits) - 1][1] = -DOUBT
    return torch.tensor(rows).clamp(-LOGIT, LOGIT)


class Policy(nn.Module):
    """From what `observation.observe` sees, [B, size], to actions. table: [max_calls, 2].

    Exploration is not learned. PPO's ratio is of both parts of an action together, so they have to move at one pace;
    and it would shrink before it is learned for which images another decision is right.
    """

    table: Tensor
    spread: Tensor

    def __init__(self, size: int, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.clone())
        self.register_buffer("spread", torch.tensor(SPREAD))
        self.rows = nn.Parameter(torch.zeros_like(table))
        self.network = mlp(size, 2)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, seen: Tensor) -> Tensor:
        """Means of (logit of the fraction, stop if above 0), [B, 2]: the action at deployment."""
        calls = seen[:, -len(self.table) :]
        return calls @ self.table + self.spread * (calls @ self.rows + self.network(seen))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)
    )
