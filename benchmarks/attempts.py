"""Attempts to come closer to the teacher at the same cost, beside the method `output` as the grid tuned it.

    python -m benchmarks.attempts [--steps 4 2] [--seeds 1 2 3] [--names "half the rate" ...]

Every attempt changes one thing of the chosen settings of `benchmarks.grid` and has the same budget. All are run on the
tuning seed first; the others tell which of them hold. A run whose result is kept is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.emoji.fit import single_thread
from benchmarks.grid import BUDGET, RECIPE, TUNING_SEED, Arm, arms, interval, settings, untuned
from benchmarks.in_process import PAIR, Kept, Point, candidate
from redif_ray.evaluation.report import markdown_table

KEPT = "as tuned"


def _reward(terms: Sequence[str]) -> str:
    """Return the override of a reward that has these terms, each in units of its spread."""
    return f"reward={{max_workers: 2, terms: {{{', '.join(f'{name}: {{normalise: std}}' for name in terms)}}}}}"


def _rate(steps: int, method: str) -> float:
    """Return the learning rate that the grid chose for a method."""
    (rate,) = (given.removeprefix("learner.lr=") for given in candidate(steps, method))
    return float(rate)


def attempts(steps: int) -> dict[str, Arm]:
    """Return the attempts by name, each with one candidate."""
    output, rate, draft = arms(steps)["output"], _rate(steps, "output"), arms(steps)["draft"]
    given: dict[str, tuple[tuple[str, ...], float]] = {
        KEPT: ((), rate),
        "half the rate": ((), rate / 2),
        "half the noises, more rounds": (("conditions.pool=512",), rate),
        "4 scores an image": (("output.samples=4",), rate),
        "4 scores an image, along the way to the teacher's": (("output.samples=4", "output.directions=teacher"), rate),
        "terms in units of their spreads": ((_reward(PAIR),), rate),
        "features of a classifier in the reward": ((_reward((*PAIR, "feature_cosine")),), rate),
        "back-propagation, half the rate": (draft.fixed, _rate(steps, "draft") / 2),
        "back-propagation, no recomputation": ((*draft.fixed, "draft.recompute=false"), _rate(steps, "draft")),
    }
    return {name: Arm((*output.fixed, *changed), ((f"learner.lr={lr:g}",),)) for name, (changed, lr) in given.items()}


def trained(kept: Kept, steps: int, name: str, seed: int) -> Point:
    """Return the measurements of an attempt's student after the whole budget."""
    arm = attempts(steps)[name]

    def make() -> Point:
        run = kept.run(seed, RECIPE, settings(steps, arm, arm.candidates[0], BUDGET[steps]))
        return run.train([run.loop.plan.rounds])[-1]

    return kept.point(f"{steps} steps, {name}, seed {seed}", make)


def table(kept: Kept, every: Sequence[int], names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the attempts as a Markdown table. Differences are to the settings as tuned, paired by seed."""
    rows = []
    for steps in every:
        first = [trained(kept, steps, KEPT, seed) for seed in seeds]
        for name in names:
            tuning, points = trained(kept, steps, name, TUNING_SEED), [trained(kept, steps, name, s) for s in seeds]
            row = [
                str(steps),
                name,
                f"{tuning['frechet']:.1f}",
                f"{statistics.fmean(p['frechet'] for p in points):.2f}",
            ]
            for key, scale in (("frechet", 1), ("recall", 100), ("pixel_mse", 1000)):
                apart = [scale * (own[key] - other[key]) for own, other in zip(points, first, strict=True)]
                row.append("" if name == KEPT else interval(apart))
            rows.append(row)
    head = ["steps", "", f"Fréchet, seed {TUNING_SEED}", "Fréchet", "apart", "100 recall apart", "1000 mse apart"]
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/attempts"), help="where the teacher's images go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/attempts.json"))
    parser.add_argument("--steps", type=int, nargs="+", choices=[1, 2, 4, 8], default=[4, 2])
    parser.add_argument("--names", nargs="+", choices=list(attempts(4)), default=list(attempts(4)))
    parser.add_argument("--seeds", type=untuned, nargs="*", default=[1, 2, 3])
    options = parser.parse_args()
    single_thread()
    print(table(Kept(options.results, options.root), options.steps, options.names, options.seeds))


if __name__ == "__main__":
    main()
