"""A run with a reward that learns, and with one that only its reward workers can import and only by a secret."""

from __future__ import annotations

import os
from pathlib import Path

from smoke_runs import smoke

from redif_ray.config import Config

SECRET = "a-token-that-nobody-may-read"
MODULE = f"""
import os

if os.environ["SCORER_TOKEN"] != "{SECRET}" or os.environ["DO_NOT_TRACK"] != "true":
    raise RuntimeError("another environment")


def score(student, teacher, conditions):
    return -(student - teacher).square().mean((1, 2, 3))
"""
TERMS = (
    "mse: {normalise: std}",
    "mine: {weight: 0.5, normalise: std, options: {callable: 'only_there:score'}}",
    "discriminator: {normalise: std, options: {lr: 1.0e-2, width: 4}}",
)


def learned_run(root: Path, *overrides: str) -> Config:
    """Two ranks, a checkpoint after each of 4 rounds, the first of warm start. Under `root` are module and store."""
    modules = root / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "only_there.py").write_text(MODULE)
    there = os.pathsep.join([str(modules), *filter(None, [os.environ.get("PYTHONPATH")])])
    return smoke(
        root / "runs",
        "learned",
        f"reward.terms={{{', '.join(TERMS)}}}",
        "learner.workers=2",
        "checkpoint.every=1",
        "checkpoint.keep=4",
        f"reward.runtime_env.env_vars={{SCORER_TOKEN: null, PYTHONPATH: '{there}'}}",
        "evaluation.held_out=20",
        f"tracking.uri=sqlite:///{root}/runs/mlflow.db",
        *overrides,
    )
