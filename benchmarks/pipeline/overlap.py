"""Measure the gain of staleness: rounds a second if the next round is rolled out during the update, and if it waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.short_runs import periods, recipe, worked
from benchmarks.suite import Part
from redif_ray.interrupt import StopRequest
from redif_ray.job.distill import run_part

# One work unit a round, and jumps of the anchor, which follow the rollout: both take about as long as the update.
SETTING = (
    "rollout.groups=4",
    "rollout.unit_groups=4",
    "learner.anchor.weight=0.1",
    "learner.anchor.substeps=2",
    "teacher.steps=2",
)
UPDATE = ("update",)
HEAD = ["staleness", "seconds a round", "rollout and rewards", "update", "work / time", "rounds a second, ratio"]
BEFORE = ("rollout", "score", "anchor")


def overlap(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    rounds: int = 12,
    base: str = "fashion_mnist",
    setting: tuple[str, ...] = SETTING,
) -> Part:
    length = (f"learner.rounds={rounds}", f"validation.every={rounds}", f"checkpoint.every={rounds}")
    seconds: dict[int, list[float]] = {}
    work: dict[int, dict[str, float]] = {}
    for staleness in (0, 1, 0):  # the first once more, against drift
        name = f"staleness-{staleness}-{len(seconds.get(staleness, ()))}"
        config = recipe(root, name, *setting, *length, f"pipeline.staleness={staleness}", base=base)
        folder = run_part(config, stop, until=rounds, resume=False, console=console)
        seconds.setdefault(staleness, []).append(float(np.median(periods(folder))))
        work[staleness] = worked(folder, rounds)
    means = {staleness: float(np.mean(found)) for staleness, found in seconds.items()}
    rows, busy = [], {}
    for staleness, mean in means.items():
        before, update = (sum(work[staleness].get(s, 0.0) for s in stages) for stages in (BEFORE, UPDATE))
        busy[staleness] = before + update
        rows.append(
            [
                str(staleness),
                f"{mean:.2f}",
                f"{before:.2f}",
                f"{update:.2f}",
                f"{(before + update) / mean:.0%}",
                f"{means[0] / mean:.2f}",
            ]
        )
    ratio, slower = means[0] / means[1], busy[1] / busy[0]
    return Part(
        "overlap",
        "Overlap: staleness 1 against 0",
        HEAD,
        rows,
        {"ratio": ratio, "slower": slower, "seconds_0": means[0], "seconds_1": means[1]},
        [
            f"Medians of {rounds - 2} rounds, staleness 0 before and after. Two stages of equal length allow 2. Where "
            f"they run at once, each takes {slower:.2f} of its time alone: cores share caches, memory and Ray's own "
            "processes. That, and the rest of the time that nobody works in, is what is missing."
        ],
    )
