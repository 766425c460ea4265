"""GITS (Chen et al., arXiv 2405.11326): the best N-step path over the teacher's own trajectory, by dynamic programming.

The teacher's trajectory passes states x_i on a fine grid of levels. One Euler step from i to j misses x_j by
c_ij = E ||x_j - Euler(x_i, i -> j)||. Dynamic programming finds the path of N steps from the first level to the last
that minimises

    c_{i0 i1} + gamma (c_{i1 i2} + gamma (c_{i2 i3} + ...))

exactly. gamma above 1 gives more weight to later steps, whose errors no further step corrects.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion import solvers
from redif_ray.diffusion.levels import NoiseProcess, VarianceExploding
from redif_ray.diffusion.schedules import Schedule, build
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import DETERMINISTIC, transition_mean

GRID = 60  # network calls of the teacher's trajectory
GAMMAS = (0.85, 1.0, 1.15)


def grid(process: NoiseProcess) -> Schedule:
    """Return the fine grid of levels, whose points the paths connect."""
    return build(process, GRID, "karras" if isinstance(process, VarianceExploding) else "uniform_trailing")


@torch.no_grad()
def costs(predict: Predict, unit_noise: Tensor, levels: Schedule) -> np.ndarray:
    """Return c_ij of the trajectories from `unit_noise` [B, ...], float64 [M + 1, M + 1], infinite for j <= i.

    levels: the fine grid, M steps.
    """
    x, m = solvers.initial(levels, unit_noise), levels.steps
    states, predictions = [x], []
    for i in range(m):
        predictions.append(predict(x, levels[i]))
        x = transition_mean(predictions[i], levels[i + 1], DETERMINISTIC)
        states.append(x)
    cost = np.full((m + 1, m + 1), np.inf)
    for i in range(m):
        for j in range(i + 1, m + 1):
            miss = states[j] - transition_mean(predictions[i], levels[j], DETERMINISTIC)
            cost[i, j] = float(miss.flatten(1).norm(dim=1).double().mean())
    return cost


def best_path(cost: np.ndarray, steps: int, gamma: float) -> list[int]:
    """Return the N = `steps` grid indices of the best path's network calls, from index 0.

    cost: c_ij [M + 1, M + 1]; the path ends at index M. Raises ValueError unless 1 <= N <= M.
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"steps={steps}: expected 1 to {last}, the steps of the grid")
    value, choice = cost[:, last].copy(), [np.full(last + 1, last)]
    for _ in range(steps - 1):
        through = cost + gamma * value[None, :]
        choice.append(through.argmin(1))
        value = through.min(1)
    path = [0]
    for k in range(steps - 1, 0, -1):
        path.append(int(choice[k][path[-1]]))
    return path
