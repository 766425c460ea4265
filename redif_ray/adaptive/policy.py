"""The agent's network, without RLlib; it is trained, saved as safetensors and used at deployment.

The mean of an action is a row of a table, by the number of calls, plus two learned parts in units of exploration: a row
by the number of calls, and the output of a small network on the observation. Both learned parts start at 0 and the
table follows a static schedule, so the untrained agent acts as this schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from redif_ray.adaptive.observation import LOGIT

HIDDEN = 64
# Distance of an untrained agent's mean from the opposite stop decision, in standard deviations of exploration.
SURE, DOUBT = 3.0, 0.5
SPREAD = (0.08, 1.0)  # standard deviations of exploration, of a fraction's logit and of stopping


def static_table(moves: Sequence[float], max_calls: int) -> Tensor:
    """Return the table of a static schedule, float32 [max_calls, 2]; row k - 1 is the mean action after k calls.

    moves: the schedule's fractions [N - 1], N >= 2.
    The stop entries of row N - 1 (make the last call) and row N (stop) are close to 0, so the agent explores there.
    Later rows repeat the last move.
    """
    logits = [math.log(fraction / (1 - fraction)) for fraction in moves]
    rows = [[logit, -SURE] for logit in logits] + [[logits[-1], DOUBT]] * (max_calls - len(logits))
    rows[len(logits) - 1][1] = -DOUBT
    return torch.tensor(rows).clamp(-LOGIT, LOGIT)


class Policy(nn.Module):
    """Map observations of `observation.observe`, [B, size], to actions. table: float32 [max_calls, 2].

    Exploration is not learned. PPO's ratio covers both parts of an action together, so both have to change at one pace;
    a learned spread would shrink before the policy has learned which images need another decision.
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

    def forward(self, observations: Tensor) -> Tensor:
        """Return the means of (logit of the fraction, stop if above 0), [B, 2], which are the actions at deployment."""
        calls = observations[:, -len(self.table) :]
        return calls @ self.table + self.spread * (calls @ self.rows + self.network(observations))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)
    )
