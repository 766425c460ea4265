"""Step schedules over several banks of noises: one table of finished searches that differ in their seed alone.

    for seed in 0 1 2; do
        redif search fashion_mnist run.name=bank$seed run.seed=$seed search.steps=[2,3,4,6,8] search.engine=both \
            evaluation.held_out=1000
    done
    python -m benchmarks.schedules runs/bank?-search

Each cell is the mean over seeds with its 95 % interval by Student's t: a seed has its own bank, its own search and its
own held-out noises. The last columns are paired by seed, since all schedules of a seed see the same noises.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from redif_ray.diffusion.schedules import NAMES
from redif_ray.evaluation.report import markdown_table

HEAD = ["N", "schedule", "distance ↓", "Fréchet ↓", "recall ↑", "against best named", "against best GITS"]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half width."""
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def change(mine: np.ndarray, other: np.ndarray) -> str:
    mean, half = interval(mine / other - 1)
    return f"{mean:+.1%} ± {half:.1%}"


def rows(summaries: list[dict[str, Any]], steps: int) -> list[list[str]]:
    """A line a schedule of `steps` steps; which named one, and which GITS, is best is decided by the mean."""
    own = [{row["name"]: row for row in s["schedules"] if row["steps"] == steps} for s in summaries]
    distance = {name: np.array([found[name]["distance"] for found in own]) for name in own[0]}
    named, gits = ([n for n in distance if pick(n)] for pick in (NAMES.__contains__, lambda n: n.startswith("gits")))
    best = [min(names, key=lambda name: float(distance[name].mean())) for names in (named, gits)]
    lines = []
    for name, values in distance.items():
        mean, half = interval(values)
        arms = [found[name]["arm"] for found in own]
        searched = name.startswith("searched")
        lines.append(
            [
                str(steps),
                f"**{name}**" if searched else name,
                f"{mean:.5f} ± {half:.5f}",
                f"{np.mean([arm['frechet'] for arm in arms]):.1f}",
                f"{np.mean([arm['recall'] for arm in arms]):.3f}",
                *(change(values, distance[other]) if searched else "" for other in best),
            ]
        )
    return lines


def main() -> None:
    summaries = [json.loads((Path(folder) / "summary.json").read_text()) for folder in sys.argv[1:]]
    steps = sorted({row["steps"] for row in summaries[0]["schedules"]})
    print(markdown_table(HEAD, [line for n in steps for line in rows(summaries, n)]))
    for s in summaries:
        print(f"\nseed {s['seed']}: " + ", ".join(f"{name} {taken:.0f} s" for name, taken in s["seconds"].items()))


if __name__ == "__main__":
    main()
