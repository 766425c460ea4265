"""Passes over a round cost the same, and the rate of each is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import clipped, grid
from benchmarks.in_process import Kept
from redif_ray.config import load


@pytest.mark.slow
def test_more_passes_have_fewer_rounds_of_the_same_cost() -> None:
    found = {}
    for epochs in (1, 4):
        each = clipped.arm(epochs)
        config = load("fashion_mnist", [*grid.settings(4, each, each.candidates[0], 15_000.0)])
        assert config.learner.inner_epochs == epochs and 13_500 < grid.cost(config) <= 15_000
        found[epochs] = config.learner.rounds
    assert found[1] > found[4] > 0


def test_each_number_of_passes_has_the_rate_that_its_tuning_seed_chose(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json", tmp_path)
    rates = [candidate[0] for candidate in clipped.arm(1).candidates]
    best = {1: rates[1], 2: rates[0]}
    for epochs in (1, 2):
        for rate in rates:
            distance = 10.0 if rate == best[epochs] else 11.0
            kept.keep(f"{epochs} passes, {rate}, budget 15,000, seed 0", [{"frechet": distance}])
        for seed in (1, 2, 3):
            point = {
                "frechet": 14.0 + seed - epochs / 2,
                "recall": 0.9,
                "pixel_mse": 0.002,
                "clipped": 0.3 * (epochs - 1),
            }
            kept.keep(f"{epochs} passes, {best[epochs]}, budget 60,000, seed {seed}", [point])
    _, _, one, two = clipped.table(kept, (1, 2), (1, 2, 3)).splitlines()
    assert one == f"| 1 | {best[1]} | 0.0% | 14.5, 15.5, 16.5 |  |  |  |"
    assert two == (
        f"| 2 | {best[2]} | 30.0% | 14.0, 15.0, 16.0 | -0.50 [-0.50, -0.50] | +0.00 [+0.00, +0.00] "
        "| +0.00 [+0.00, +0.00] |"
    )


def test_the_page_has_the_table_of_the_kept_runs() -> None:
    root = Path(__file__).parents[2]
    kept = Kept(root / "benchmarks" / "results" / "clipped.json", root)
    assert clipped.table(kept, (1, 4), (1, 2, 3)).strip() in (root / "docs" / "measurements.md").read_text()
