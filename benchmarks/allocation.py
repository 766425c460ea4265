"""Bound what an adaptive schedule could win: the held-out distances of a finished search, spent by image or by class.

    python -m benchmarks.allocation runs/bank0-search

At each price of a call: the searched schedule that is best for all; the best N of each class, chosen on one half of the
noises and measured on the other; and the best N of each image, which only an oracle knows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from redif_ray.data.conditions import CONDITIONS, Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.report import markdown_table
from redif_ray.runs.jsonl import read_rows

HEAD = ["price", "who chooses N", "mean calls", "distance", "distance + price x calls", "against one N for all"]


def by_class(cost: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The index of N for each image: what is best for its class on the noises of the other half."""
    chosen = np.zeros(len(cost), int)
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        for side, other in ((own[::2], own[1::2]), (own[1::2], own[::2])):
            chosen[side] = cost[other].mean(0).argmin()
    return chosen


def main(folder: Path) -> None:
    rows = [row for row in read_rows(folder / "held_out.jsonl") if row["name"] == "searched"]
    rows.sort(key=lambda row: row["steps"])
    steps = np.array([row["steps"] for row in rows])
    distances = np.array([row["distances"] for row in rows]).T
    conditions = Conditions.from_json((folder / CONDITIONS).read_text())
    classes = np.array([conditions.of(Stream.HELD_OUT, i) for i in range(len(distances))])
    table = []
    for agent in json.loads((folder / "adaptive" / "adaptive.json").read_text())["agents"]:
        cost = distances + agent["price"] * steps
        one = np.full(len(cost), cost.mean(0).argmin())
        for name, chosen in (("all", one), ("its class", by_class(cost, classes)), ("its own", cost.argmin(1))):
            at = (np.arange(len(cost)), chosen)
            table.append(
                [
                    f"{agent['price']:.5f}",
                    name,
                    f"{steps[chosen].mean():.2f}",
                    f"{distances[at].mean():.5f}",
                    f"{cost[at].mean():.5f}",
                    f"{cost[at].mean() - cost.mean(0).min():+.5f}",
                ]
            )
    print(markdown_table(HEAD, table))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
