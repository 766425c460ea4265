"""The wall time and the worker seconds of recipes at this checkout and at another one, in turns.

    python -m benchmarks.versions OTHER_CHECKOUT [--turns 2] [--recipes NAME ...] [--out FOLDER]

Both checkouts run this one's recipes, shortened as `SHORT` says, with one thread for each process and a store of their
own. The order of the two changes with each turn, since a machine may have slow phases.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redif_ray.evaluation.report import markdown_table
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.timeline import SPANS

HERE = Path(__file__).parents[1]
SHORT = {
    "fashion_mnist_output": ("learner.rounds=60", "evaluation.held_out=400", "evaluation.search=80"),
    "fashion_mnist": (
        "warm_start.rounds=10",
        "learner.rounds=60",
        "evaluation.held_out=400",
        "evaluation.search=80",
    ),
    "emoji_4step": (
        "warm_start.rounds=6",
        "learner.rounds=16",
        "validation.every=8",
        "evaluation.held_out=100",
        "evaluation.search=20",
    ),
}
STAGES = ("targets", "rollout", "score", "update", "validation", "evaluation")


@dataclass(frozen=True, slots=True)
class Timed:
    """The seconds of a run: on the clock, of the rounds of training on it, and of work by stage.

    reward: that of the last validation, which shows that both checkouts train alike.
    """

    wall: float
    rounds: float
    work: dict[str, float]
    reward: float


def timed(checkout: Path, recipe: str, root: Path) -> Timed:
    """Run a recipe of this checkout with the code of `checkout`."""
    settings = [f"run.root={root}", "run.name=timed", "tracking.uri=off", *SHORT[recipe]]
    command = "from redif_ray.cli import main; main()"
    environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", command, "distill", str(HERE / "configs" / f"{recipe}.yaml"), *settings],
        cwd=checkout,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        check=True,
    )
    wall = time.monotonic() - began
    rows, spans = read_rows(root / "timed" / "metrics.jsonl"), read_rows(root / "timed" / SPANS)
    rewards = [row["validation/reward"] for row in rows if "validation/reward" in row]
    work = {stage: sum(span["seconds"] for span in spans if _of(span, stage)) for stage in STAGES}
    return Timed(wall, sum(row.get("seconds/round", 0.0) for row in rows), work, rewards[-1])


def _of(span: Mapping[str, Any], stage: str) -> bool:
    """Tell whether a span is work of a stage; the learner waits for the workers' validation."""
    return span["stage"] == stage and not (stage == "validation" and span["row"].startswith("learner"))


def table(found: dict[str, list[tuple[Timed, Timed]]]) -> str:
    """Compare the pairs (other, this) of each recipe, by medians."""

    def row(name: str, values: list[tuple[float, float]]) -> list[str]:
        other, this = (statistics.median(each) for each in zip(*values, strict=True))
        ratios = ", ".join(f"{mine / before:.2f}" for before, mine in values)
        return [name, f"{other:,.0f}", f"{this:,.0f}", f"{this / other:.2f}", ratios]

    rows: list[list[str]] = []
    for recipe, pairs in found.items():
        rows.append(row(f"`{recipe}`: whole run, s", [(a.wall, b.wall) for a, b in pairs]))
        rows.append(row("rounds, s", [(a.rounds, b.rounds) for a, b in pairs]))
        rows.append(row("work of all processes, s", [(_all(a), _all(b)) for a, b in pairs]))
        rows += [row(f"of it {s}, s", [(a.work[s], b.work[s]) for a, b in pairs]) for s in STAGES if _worked(pairs, s)]
        rewards = ", ".join(f"{a.reward:.5f} and {b.reward:.5f}" for a, b in pairs)
        rows.append(["reward of the last validation", "", "", "", rewards])
    return str(markdown_table(["", "before", "now", "now / before", "of each turn"], rows))


def _all(run: Timed) -> float:
    return sum(run.work.values())


def _worked(pairs: list[tuple[Timed, Timed]], stage: str) -> bool:
    return all(min(a.work[stage], b.work[stage]) > 0.5 for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of another checkout of this repository")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", choices=list(SHORT), default=list(SHORT))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options: Any = parser.parse_args()
    checkouts, found = (options.other.resolve(), HERE), dict[str, list[tuple[Timed, Timed]]]()
    for recipe in options.recipes:
        for turn in range(options.turns):
            runs: dict[Path, Timed] = {}
            for checkout in checkouts if turn % 2 == 0 else checkouts[::-1]:
                with tempfile.TemporaryDirectory(prefix="redif-") as root:
                    runs[checkout] = timed(checkout, recipe, Path(root))
                    print(f"{recipe} at {checkout}: {runs[checkout].wall:.0f} s", flush=True)
            found.setdefault(recipe, []).append((runs[checkouts[0]], runs[checkouts[1]]))
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "versions.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
