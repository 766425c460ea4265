"""GITS (Chen et al., arXiv 2405.11326): the best N-step path over the teacher's own trajectory, by dynamic programming.

On a fine grid of levels the teacher leaves states x_i. Going from i to j in one Euler step misses x_j by
c_ij = E ||x_j - Euler(x_i, i -> j)||. A path of N steps from the first level to the last that makes

    c_{i0 i1} + gamma (c_{i1 i2} + gamma (c_{i2 i3} + ...))

least is found exactly. gamma above 1 weighs the later steps, whose errors nothing corrects.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion import solvers
from redif_ray.diffusion.levels import NoiseProcess, VarianceExploding
from redif_ray.diffusion.schedules import Schedule, build
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import transition_mean

GRID = 60  # network calls of the teacher's trajectory
GAMMAS = (0.85, 1.0, 1.15)


def grid(process: NoiseProcess) -> Schedule:
    """The levels between which paths are looked for."""
    return build(process, GRID, "karras" if isinstance(process, VarianceExploding) else "uniform_trailing")


@torch.no_grad()
def costs(predict: Predict, unit_noise: Tensor, levels: Schedule) -> np.ndarray:
    """c_ij for the trajectories of `unit_noise` [B, ...], [M + 1, M + 1] float64; infinite for j <= i."""
    x, m = solvers.initial(levels, unit_noise), levels.steps
    states, predictions = [x], []
    still = torch.zeros((), dtype=torch.float64)
    for i in range(m):
        predictions.append(predict(x, levels[i]))
        x = transition_mean(predictions[i], levels[i + 1], still)
        states.append(x)
    cost = np.full((m + 1, m + 1), np.inf)
    for i in range(m):
        for j in range(i + 1, m + 1):
            miss = states[j] - transition_mean(predictions[i], levels[j], still)
            cost[i, j] = float(miss.flatten(1).norm(dim=1).double().mean())
    return cost


def best_path(cost: np.ndarray, steps: int, gamma: float) -> list[int]:
    """The N = `steps` indices at which the network is called, from 0; the path ends at the last of the grid."""
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
