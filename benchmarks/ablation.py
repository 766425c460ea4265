"""The settings of the paper's public code, one at a time and all together, in place of ours.

    python -m benchmarks.ablation

Starts from configs/fashion_mnist_paper.yaml, puts one setting of the public code in place of ours, and at last all of
them. The same resumable runs as in benchmarks/comparison.py; the table in docs/measurements.md is that of
`--results benchmarks/results/ablation.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.kept import Result, Results
from redif_ray.errors import Notice

SEED = 1  # ours were tuned on 0
BASE = "fashion_mnist_paper"
PUBLIC = {
    "eta 1": ("exploration.eta=1",),
    "no siblings, running statistics by class": (
        "rollout.groups=64",
        "rollout.unit_groups=32",
        "rollout.siblings=1",
        "exploration.antithetic=false",
        "learner.advantage=running",
    ),
    "steps not weighted, the last one explores": ("learner.step_weight=none", "exploration.last_step=true"),
    "leading levels": ("student.schedule=uniform_leading",),
    "lr 1e-5 constant, no average": ("learner.lr=1e-5", "learner.schedule=constant", "learner.ema=0"),
}
ALL = tuple(setting for settings in PUBLIC.values() for setting in settings)
RUNS = {
    "ours": (),
    **PUBLIC,
    "all of these": ALL,
    "all of these, 20 rounds": (*ALL, "learner.rounds=20"),
}
SMALL = ("evaluation.held_out=1000", "evaluation.search=50")


def row(label: str, found: Result) -> str:
    student, untrained = found["arms"]["student"], found["arms"]["teacher_few"]
    gains = found["gains"]["over the untrained student"]
    cells = [label, f"{untrained['frechet']:.1f} → {student['frechet']:.1f}"]
    for key, digits in (("frechet", 1), ("mse", 4)):
        c = gains[key]
        cells.append(f"{c['change']:+.{digits}f} [{c['low']:+.{digits}f}, {c['high']:+.{digits}f}]")
    cells.append(f"{untrained['recall']:.3f} → {student['recall']:.3f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"), help="where the run folders go")
    parser.add_argument("--results", type=Path, help="default: <root>/results.json")
    options = parser.parse_args()
    results = Results(options.results or options.root / "results.json", options.root)
    head = ["setting", "Fréchet", "change", "paired mse, gain", "recall"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    try:
        for i, (label, settings) in enumerate(RUNS.items()):
            found = results.of(f"run-{i}", BASE, (*settings, *SMALL), seed=SEED, targets="shared")
            lines.append(row(label, found))
    except Notice as notice:
        raise SystemExit(f"{notice} (run this command again)") from None
    print("\n".join(lines))


if __name__ == "__main__":
    main()
