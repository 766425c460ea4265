"""Runs whose results are kept: made once, resumed where they were cut short, found afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redif_ray.config import Config, load
from redif_ray.data.targets import content_hash
from redif_ray.job.distill import distill
from redif_ray.runs.jsonl import read_rows

Result = dict[str, Any]


class Results:
    """The results of runs in one JSON file; a run that is in it is not made again. Run folders go below `root`."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root.resolve()
        self.runs: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, config: str, settings: Sequence[str], *, seed: int, targets: str) -> Result:
        """{"settings", "validation_reward", "arms", "compute", "gains"} of one run, found, resumed or made.

        targets: the name of its target store; runs that share one don't compute a teacher image twice. A run of this
        name with other settings is kept under a name of its own.
        """
        given = [config, *settings]
        if name in self.runs and self.runs[name]["settings"] != given:
            name = f"{name}-{content_hash(given)[:8]}"
        if name not in self.runs:
            place = (f"run.name={name}", f"run.seed={seed}", f"run.root={self.root}")
            whole: Config = load(config, [*settings, *place, f"teacher.store={self.root}/.targets-{targets}"])
            folder = self.root / name
            if not (folder / "summary.json").exists():
                distill(whole, resume=(folder / "config.yaml").exists())
            summary = json.loads((folder / "summary.json").read_text())
            rewards = [row.get("validation/reward", -math.inf) for row in read_rows(folder / "metrics.jsonl")]
            self.runs[name] = {
                "settings": given,
                "validation_reward": max(rewards),
                "arms": summary["arms"],
                "compute": summary["compute"],
                "gains": summary["notes"]["student_gain"],
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.runs, indent=1) + "\n")
        return self.runs[name]


def training_cost(result: Result) -> dict[str, float]:
    """Worker seconds and FLOPs of training; evaluation is the same for all and left out."""
    parts = [cost for name, cost in result["compute"].items() if name != "evaluation"]
    return {key: sum(part[key] for part in parts) for key in ("seconds", "flops")}
