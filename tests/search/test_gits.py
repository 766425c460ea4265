from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.levels import Level, VarianceExploding, like
from redif_ray.diffusion.transition import Prediction, transition_mean
from redif_ray.search import gits


def cost_of(cost: np.ndarray, path: tuple[int, ...], gamma: float) -> float:
    """c_01 + gamma (c_12 + gamma (...)), written out."""
    return sum(gamma**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))


@pytest.mark.parametrize("gamma", gits.GAMMAS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_it_is_the_best_of_all_paths(steps: int, gamma: float) -> None:
    m = 8
    cost = np.random.default_rng(steps).random((m + 1, m + 1))
    cost[np.tril_indices(m + 1)] = np.inf
    every = [(0, *inner, m) for inner in itertools.combinations(range(1, m), steps - 1)]
    best = min(every, key=lambda path: cost_of(cost, path, gamma))
    assert tuple(gits.best_path(cost, steps, gamma)) == best[:-1]


def test_more_steps_than_the_grid_has_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 4"):
        gits.best_path(np.zeros((5, 5)), 5, 1.0)


def test_the_cost_of_a_step_is_what_it_misses_the_teacher_by() -> None:
    process = VarianceExploding()
    levels = schedules.build(process, 6, "karras")

    def predict(x: torch.Tensor, t: Level) -> Prediction:
        x0 = x / like(1 + t.sigma**2, x)  # E[x0 | x] of unit Gaussian data
        return Prediction(x0, (x - x0) / like(t.sigma, x))

    unit = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    cost = gits.costs(predict, unit, levels)
    x, still = solvers.initial(levels, unit), torch.zeros((), dtype=torch.float64)
    for i in range(2):
        x = transition_mean(predict(x, levels[i]), levels[i + 1], still)
    far, at = transition_mean(predict(x, levels[2]), levels[5], still), x
    for i in range(2, 5):
        at = transition_mean(predict(at, levels[i]), levels[i + 1], still)
    assert cost[2, 5] == pytest.approx(float((far - at).norm(dim=1).mean()), rel=1e-5)
    assert cost[2, 3] == 0 and np.isinf(cost[3, 2]) and np.isinf(cost[3, 3])
