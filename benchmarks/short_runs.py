"""Short runs of a shipped recipe, and what their timelines say of their rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from redif_ray.config import Config, load
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.timeline import SPANS


def recipe(root: Path, name: str, *overrides: str, base: str = "fashion_mnist") -> Config:
    """A shipped recipe with one single-threaded worker of each kind, no warm start, and nothing tracked.

    It explores at every step: of rounds that explore at one alone, siblings share more than their first step.
    """
    alone = [
        "rollout.max_workers=1",
        "reward.max_workers=1",
        "learner.workers=1",
        "learner.threads=1",
        "warm_start.rounds=0",
        "tracking.uri=off",
        "guard.recall_floor=0",
        "exploration.one_step=false",
        f"run.root={root}",
        f"run.name={name}",
    ]
    return load(base, [*alone, *overrides])


def updates(folder: Path) -> np.ndarray:
    """Return when each update started, in seconds since the epoch, without the first one, in which caches fill."""
    return np.array([span["start"] for span in read_rows(folder / SPANS) if span["stage"] == "update"][1:])


def periods(folder: Path) -> np.ndarray:
    """Seconds from the start of an update to that of the next."""
    return np.diff(updates(folder))


def worked(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of work a round, by stage, of all workers together, over the rounds that were trained."""
    total: dict[str, float] = {}
    for span in read_rows(folder / SPANS):
        total[span["stage"]] = total.get(span["stage"], 0.0) + span["seconds"] / rounds
    return total


def median_work(folder: Path, *stages: str, first: int = 1) -> float:
    """Seconds of work of all workers together on `stages`: the median over the rounds from `first` on."""
    rounds: dict[int, float] = {}
    for span in read_rows(folder / SPANS):
        if span["stage"] in stages and span["round"] >= first:
            rounds[span["round"]] = rounds.get(span["round"], 0.0) + span["seconds"]
    return float(np.median(list(rounds.values())))
