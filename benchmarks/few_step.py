"""Students that start as a 4-step student: to 2 steps, and ten times the usual rounds by scores of a black box.

    python -m benchmarks.few_step start [--seeds 1 2 3]
    python -m benchmarks.few_step rounds [--seeds 1 2 3] [--settings NAME ...]

Every run is one process (`redif_ray.loop`), and its student is the average after the last round, as deployed, measured
on 2,000 held-out noises. A run whose result is kept is not made again. `start`: the method `output` with the settings
and the budget B of `benchmarks.grid`, which chose them on seed 0 for students that start as the teacher. The 4-step
student costs B, and the 2-step student that starts as it another B. So it is compared with 2-step students that start
as the teacher: the grid's own of B, if the 4-step student is there already, and those of 2 B, if it is not. `rounds`:
the 4-step students go on for 1,580 rounds, ten times those of configs/fashion_mnist_output.yaml, by other rewards.
"fine" is the power of the images above half of the Nyquist frequency, relative to that of the teacher's images of the
same noises.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid import BUDGET, arms, interval, settings
from benchmarks.in_process import GRID, PAIR, Kept, Point, candidate
from benchmarks.kept import Results
from redif_ray.evaluation.report import markdown_table

USUAL = 158  # rounds of configs/fashion_mnist_output.yaml
LOW = "learner.lr=2e-5"  # a tenth of the recipe's


def by(*terms: str) -> str:
    return f"reward={{terms: {{{', '.join(f'{term}: {{normalise: std}}' for term in terms)}}}}}"


SETTINGS: dict[str, tuple[str, ...]] = {
    "class": (by("classifier"),),
    "class, low rate": (by("classifier"), LOW),
    "class and pair, low rate": (by("classifier", *PAIR), LOW),
}


def start(kept: Kept, seeds: Sequence[int]) -> str:
    """Return the 2-step students as a Markdown table, with their differences from those that start as 4-step ones."""
    arm, budget, grid = arms(2)["output"], BUDGET[2], Results(GRID, kept.root)
    once, twice = (settings(2, arm, candidate(2), times * budget) for times in (1, 2))
    found: dict[str, list[Point]] = {"from 4 steps, B": [], "from the teacher, B": [], "from the teacher, 2 B": []}
    for seed in seeds:
        for name, given, four in (("from 4 steps, B", once, True), ("from the teacher, 2 B", twice, False)):
            found[name] += kept.of(name, seed, "fashion_mnist", given, four=four)
        its = grid.of(f"2-output-{seed}", "fashion_mnist", once, seed=seed, targets="output")["arms"]["student"]
        found["from the teacher, B"] += [its | its["paired"]]
    ours, rows = found["from 4 steps, B"], []
    for name, points in found.items():
        rows.append([name])
        for key, scale, digits in (("frechet", 1, 1), ("recall", 100, 1), ("pixel_mse", 1000, 2)):
            apart = [scale * (point[key] - own[key]) for point, own in zip(points, ours, strict=True)]
            rows[-1] += [", ".join(f"{scale * point[key]:.{digits}f}" for point in points)]
            rows[-1] += ["" if points is ours else interval(apart)]
    head = ["Fréchet", "100 recall", "1000 mse"]
    return markdown_table(["start and cost", *(cell for name in head for cell in (name, "difference"))], rows)


def rounds(kept: Kept, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the measurements after 0 to ten times the usual rounds as a Markdown table, means over the seeds."""
    measured = [USUAL * times for times in (0, 1, 5, 10)]
    rows = []
    for name in names:
        given = (f"learner.rounds={measured[-1]}", "rollout.unit_groups=4", "output.groups=4", *SETTINGS[name])
        curves = [kept.of(name, seed, "fashion_mnist_output", given, measured, four=True) for seed in seeds]
        for points in zip(*curves, strict=False):
            mean = {key: statistics.fmean(point[key] for point in points) for key in points[0]}
            cells = [
                f"{mean['rounds']:.0f}",
                f"{mean['classifier']:.3f}",
                f"{mean['fine']:.3f}",
                f"{mean['recall']:.3f}",
            ]
            rows.append([name, *cells, f"{mean['frechet']:.1f}", f"{1000 * mean['pixel_mse']:.2f}"])
    return markdown_table(["reward", "rounds", "score", "fine", "recall", "Fréchet", "1000 mse"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "rounds"])
    parser.add_argument("--root", type=Path, default=Path("runs/few-step"), help="where 4-step students go")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/few_step_WHAT.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="of `rounds`")
    options = parser.parse_args()
    kept = Kept(options.results or Path(f"benchmarks/results/few_step_{options.what}.json"), options.root)
    found = start(kept, options.seeds) if options.what == "start" else rounds(kept, options.settings, options.seeds)
    print(found)


if __name__ == "__main__":
    main()
