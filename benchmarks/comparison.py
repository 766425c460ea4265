"""The comparison in the README: every arm on the same teacher, steps and budget; one command, which can be resumed.

    python benchmarks/comparison.py --root runs/comparison --seeds 1 2 3

Settings of each arm were tuned on seed 0, which is not reported. A run that is finished is not run again, one that was
cut short is resumed. Writes <root>/comparison.md and <root>/comparison.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from redif_ray.config import Config, load
from redif_ray.errors import Notice
from redif_ray.pipeline.distill import distill

# Rounds of equal cost. In forwards of one image, a round of warm start takes 2,290 (rollout 192, teacher 960, jumps
# 576, update 557), of policy gradient 940 (256, 80, 0, 605), of DRaFT 1,710 (0, 960, 0, 750): 208,000 for the recipe.
ARMS = {
    "recipe": ("fashion_mnist", []),
    "paper's PPO": ("fashion_mnist_paper", ["learner.rounds=220"]),
    "sfd": ("fashion_mnist", ["method=sfd", "warm_start.rounds=91"]),
    "draft": ("fashion_mnist", ["method=draft", "warm_start.rounds=0", "learner.rounds=122", "learner.lr=1e-4"]),
}
METRICS = ("frechet", "kid", "precision", "recall", "coverage", "class_accuracy")


def run_arm(arm: str, seed: int, root: Path) -> dict[str, Any]:
    """The summary of one run, made, resumed or read."""
    config, overrides = ARMS[arm]
    name = f"{arm.replace(' ', '-').replace(chr(39), '')}-{seed}"
    resolved: Config = load(config, [*overrides, f"run.name={name}", f"run.seed={seed}", f"run.root={root}"])
    folder = root / name
    if not (folder / "summary.json").exists():
        distill(resolved, resume=(folder / "config.yaml").exists())
    return json.loads((folder / "summary.json").read_text())


def training_cost(summary: dict[str, Any]) -> dict[str, float]:
    """Worker seconds and FLOPs of training; evaluation is the same for all and left out."""
    parts = [cost for name, cost in summary["compute"].items() if name != "evaluation"]
    return {key: sum(part[key] for part in parts) for key in ("seconds", "flops")}


def rows(summaries: dict[str, list[dict[str, Any]]]) -> list[tuple[str, list[dict[str, Any]], list[dict[str, float]]]]:
    """(label, arm of each seed, cost of each seed)."""
    first = next(iter(summaries.values()))
    free = [{"seconds": 0.0, "flops": 0.0}] * len(first)
    table = [
        ("teacher, full steps", [s["arms"]["teacher_full"] for s in first], free),
        ("teacher, best schedule", [s["arms"]["teacher_best"] for s in first], free),
        ("untrained student", [s["arms"]["teacher_few"] for s in first], free),
    ]
    return table + [
        (arm, [s["arms"]["student"] for s in found], [training_cost(s) for s in found])
        for arm, found in summaries.items()
    ]


def spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.4g} ± {statistics.stdev(values):.2g}" if len(values) > 1 else f"{mean:.4g}"


def markdown(summaries: dict[str, list[dict[str, Any]]]) -> str:
    head = ["arm", "NFE", *METRICS, "paired mse", "worker seconds", "PFLOPs"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, arms, costs in rows(summaries):
        cells = [label, str(arms[0]["nfe"]), *(spread([arm[m] for arm in arms]) for m in METRICS)]
        cells += [spread([arm["paired"]["pixel_mse"] for arm in arms])]
        cells += [spread([c["seconds"] for c in costs]), spread([c["flops"] / 1e15 for c in costs])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    summaries: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    try:
        for seed in options.seeds:
            for arm in options.arms:
                summaries[arm].append(run_arm(arm, seed, options.root))
    except Notice as notice:
        raise SystemExit(f"{notice} (run this command again)") from None
    (options.root / "comparison.json").write_text(json.dumps(summaries, indent=1) + "\n")
    (options.root / "comparison.md").write_text(markdown(summaries))
    print(markdown(summaries))


if __name__ == "__main__":
    main()
