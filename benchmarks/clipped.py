"""The clipped policy gradient at every step: passes over a round in which the clip acts, at the same cost.

    python -m benchmarks.clipped [--epochs 1 2 4] [--seeds 1 2 3]

With one pass over a round (`learner.inner_epochs=1`) the ratio of policies is 1, so that the clip never acts and the
update is that of REINFORCE. More passes take more of each round and leave fewer rounds of the same cost. Students of 4
steps are those of the arm `redif` of `benchmarks.grid`, with its budget, and each number of passes has all the learning
rates of that arm, of which the tuning seed chooses at a quarter of the budget. Every run is one process, and its
student is the average after the last round, as deployed. A run whose result is kept is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.grid import BUDGET, TUNING_SEED, Arm, arms, interval, settings, untuned
from benchmarks.in_process import Kept, Point
from redif_ray.evaluation.report import markdown_table

STEPS = 4
CLIPPED = "update/clip_fraction"


def arm(epochs: int) -> Arm:
    """Return the arm of the grid, with so many passes over a round."""
    found = arms(STEPS)["redif"]
    return replace(found, fixed=(*found.fixed, f"learner.inner_epochs={epochs}"))


def trained(kept: Kept, epochs: int, seed: int, candidate: Sequence[str], budget: float) -> Point:
    """Return the measurements of a student, and the share of the losses that the clip bounded, over its rounds."""

    def train() -> Point:
        run = kept.run(seed, "fashion_mnist", settings(STEPS, arm(epochs), candidate, budget))
        point = run.train([run.loop.plan.rounds])[-1]
        shares = [metrics[CLIPPED] for metrics in run.metrics if CLIPPED in metrics]
        return point | {"clipped": statistics.fmean(shares)}

    return kept.point(f"{epochs} passes, {' '.join(candidate)}, budget {budget:,.0f}, seed {seed}", train)


def chosen(kept: Kept, epochs: int) -> tuple[str, ...]:
    """Return the learning rate with the lowest Fréchet distance on the tuning seed, at a quarter of the budget."""
    budget = BUDGET[STEPS] / 4
    return min(arm(epochs).candidates, key=lambda each: trained(kept, epochs, TUNING_SEED, each, budget)["frechet"])


def table(kept: Kept, every: Sequence[int], seeds: Sequence[int]) -> str:
    """Return the numbers of passes as a Markdown table. Differences from the first are paired by seed."""
    found = {
        epochs: [trained(kept, epochs, seed, chosen(kept, epochs), BUDGET[STEPS]) for seed in seeds] for epochs in every
    }
    first, rows = found[every[0]], []
    for epochs, points in found.items():
        row = [str(epochs), " ".join(chosen(kept, epochs)), f"{statistics.fmean(p['clipped'] for p in points):.1%}"]
        row.append(", ".join(f"{point['frechet']:.1f}" for point in points))
        for key, scale in (("frechet", 1), ("recall", 100), ("pixel_mse", 1000)):
            apart = [scale * (a[key] - b[key]) for a, b in zip(points, first, strict=True)]
            row.append("" if points is first else interval(apart))
        rows.append(row)
    head = ["passes", "rate", "clipped", "Fréchet", "Fréchet apart", "100 recall apart", "1000 mse apart"]
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/clipped"), help="where the teacher's images go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/clipped.json"))
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=untuned, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    print(table(Kept(options.results, options.root), options.epochs, options.seeds))


if __name__ == "__main__":
    main()
