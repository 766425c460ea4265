"""Comparison of agents with static schedules on held-out noises, at the same mean number of calls.

The baseline at a mean of m calls between two searched numbers of steps is the mixture of both schedules with mean m:
it draws one of them for each image, needs no agent, and its distance lies on the line between their distances.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redif_ray.adaptive.tasks import Goal
from redif_ray.config import Config
from redif_ray.evaluation import plots
from redif_ray.evaluation.bootstrap import interval
from redif_ray.evaluation.report import markdown_table
from redif_ray.files import atomic_file


@dataclass(frozen=True, slots=True)
class Front:
    """The static schedules of one kind. rows: one for each N, with `steps` and `distances`, one for each noise."""

    name: str
    rows: list[dict[str, Any]]

    @property
    def steps(self) -> list[int]:
        return sorted(row["steps"] for row in self.rows)

    @property
    def distances(self) -> np.ndarray:
        """Distances of each held-out noise, [n, len(steps)], in the order of `steps`."""
        return np.array([row["distances"] for row in sorted(self.rows, key=lambda row: row["steps"])]).T

    def at(self, calls: float, means: np.ndarray) -> float:
        """Return the distance of the mixture with a mean of `calls`. means: mean distance of each of `steps`."""
        return float(np.interp(calls, self.steps, means))


def compared(
    goal: Goal, measured: Mapping[str, np.ndarray], front: Front, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return an agent's row: its distance and calls, the mixture, the change from the mixture, and the objective.

    measured: the agent's `distance` and `calls`, each [n], on the noises of the front.
    The objective is the change of distance + price x calls from the initial schedule. Every interval resamples the same
    noises; each resample is compared with the mixture at its own mean number of calls.
    """
    distance, calls, static = measured["distance"], measured["calls"].astype(float), front.distances

    def change(d: np.ndarray, c: np.ndarray, s: np.ndarray) -> float:
        return float(d.mean()) - front.at(float(c.mean()), s.mean(0))

    def mean(values: np.ndarray) -> float:
        return float(values.mean(dtype=np.float64))

    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    m, (low, high) = mean(calls), interval(mean, [distance], **options)
    arrays = [distance, calls, static]
    change_low, change_high = interval(change, arrays, **options)
    calls_low, calls_high = interval(mean, [calls], **options)
    start = static[:, front.steps.index(goal.steps)]
    gain = distance + goal.price * calls - start - goal.price * goal.steps
    objective_low, objective_high = interval(mean, [gain], **options)
    return {
        "price": goal.price,
        "start": goal.steps,
        "calls": m,
        "calls_low": calls_low,
        "calls_high": calls_high,
        "histogram": {str(n): k for n, k in sorted(Counter(calls.astype(int).tolist()).items())},
        "distance": mean(distance),
        "distance_low": low,
        "distance_high": high,
        "mixture": front.at(m, static.mean(0)),
        "change": change(*arrays),
        "change_low": change_low,
        "change_high": change_high,
        "comparable": front.steps[0] <= m <= front.steps[-1],
        "objective": mean(gain),
        "objective_low": objective_low,
        "objective_high": objective_high,
    }


def verdict(agent: Mapping[str, Any]) -> str:
    """Return a sentence that tells whether an agent beats the static schedules."""
    if not agent["comparable"]:
        return f"its mean of {agent['calls']:.2f} calls lies outside of the searched numbers of steps: not comparable"
    share = abs(agent["change"] / agent["mixture"])
    if agent["change_high"] < 0:
        return f"the agent beats static schedules: {share:.1%} less distance at the same mean number of calls"
    if agent["change_low"] > 0:
        return f"the agent is worse than static schedules: {share:.1%} more distance at the same mean number of calls"
    return "the agent does not beat static schedules: the interval of the difference contains 0"


def write_results(
    folder: Path, config: Config, agents: Sequence[dict[str, Any]], fronts: Sequence[Front], calls_per_step: int
) -> None:
    """Write `adaptive.png` and `adaptive.md`, and `adaptive.json` last."""
    lines = {front.name: (front.steps, front.distances.mean(0).tolist()) for front in fronts}
    plots.adaptive(folder / "adaptive.png", lines, agents)
    (folder / "adaptive.md").write_text(report(config, agents, fronts, calls_per_step))
    summary = {
        "schema": 1,
        "name": config.run.name,
        "seed": config.run.seed,
        "held_out": config.evaluation.held_out,
        "calls_per_step": calls_per_step,
        "agents": list(agents),
        "static": {name: dict(zip(map(str, steps), values, strict=True)) for name, (steps, values) in lines.items()},
    }
    with atomic_file(folder / "adaptive.json") as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n")


def report(config: Config, agents: Sequence[Mapping[str, Any]], fronts: Sequence[Front], calls_per_step: int) -> str:
    """Return the text of `adaptive.md`."""
    guided = "" if calls_per_step == 1 else f" With guidance, each of these calls is {calls_per_step} network calls."
    rows = [
        [
            f"{a['price']:.4g}",
            str(a["start"]),
            f"{a['calls']:.2f}",
            " ".join(f"{n}:{k}" for n, k in a["histogram"].items()),
            f"{a['distance']:.5f} [{a['distance_low']:.5f}, {a['distance_high']:.5f}]",
            f"{a['mixture']:.5f}",
            f"{a['change']:+.5f} [{a['change_low']:+.5f}, {a['change_high']:+.5f}]",
            f"{a['objective']:+.5f} [{a['objective_low']:+.5f}, {a['objective_high']:+.5f}]",
        ]
        for a in agents
    ]
    steps = sorted({n for front in fronts for n in front.steps})
    static = [
        [
            front.name,
            *(f"{dict(zip(front.steps, front.distances.mean(0), strict=True)).get(n, np.nan):.5f}" for n in steps),
        ]
        for front in fronts
    ]
    parts = [
        f"# {config.run.name}: an adaptive schedule",
        "Agents observe each image as it forms and decide how far to go next, or stop. They were measured on "
        f"{config.evaluation.held_out:,} held-out noises, seed {config.run.seed}, with paired 95 % bootstrap intervals "
        f"over noises.{guided} Each agent is compared with the mixture of the two neighbouring searched schedules at "
        "its own mean number of calls.",
        *(f"- Price {a['price']:.4g}, {a['calls']:.2f} calls: {verdict(a)}." for a in agents),
        markdown_table(
            [
                "price",
                "starts as N",
                "mean calls",
                "images by calls",
                "distance ↓",
                "mixture",
                "agent - mixture",
                "distance + price x calls, agent - start",
            ],
            rows,
        ),
        "Static schedules:",
        markdown_table(["", *map(str, steps)], static),
        "![Distance by mean number of calls.](adaptive.png)",
    ]
    return "\n\n".join(parts) + "\n"
