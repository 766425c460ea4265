"""The attempts are recipes that load, and that cost as much as the grid's runs."""

from __future__ import annotations

import pytest

from benchmarks.attempts import KEPT, attempts
from benchmarks.grid import BUDGET, RECIPE, cost, settings
from redif_ray.config import load


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 2])
def test_every_attempt_costs_the_same(steps: int) -> None:
    tried = attempts(steps)
    seen = set()
    for name, arm in tried.items():
        (candidate,) = arm.candidates
        config = load(RECIPE, list(settings(steps, arm, candidate, BUDGET[steps])))
        assert 0.97 * BUDGET[steps] < cost(config) <= BUDGET[steps], name
        seen.add(config.model_dump_json())
    assert KEPT in tried and len(seen) == len(tried)
