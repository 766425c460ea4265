"""Runs on Ray that train something beside the student, which survives an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke_runs import last_weights, plain_weights, smoke, train

from redif_ray.checkpoint import load_checkpoint
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.usefixtures("cluster")]


def test_an_interrupted_run_of_distribution_matching_ends_as_a_plain_loop(root: Path) -> None:
    config = smoke(
        root,
        "matching",
        "method=distribution_matching",
        "distribution_matching.groups=8",
        "learner.anchor.weight=0",
        "learner.microbatch=8",
        "checkpoint={every: 1, keep: 4}",
    )
    train(config, until=2)
    folder = train(config, resume=True)
    assert last_weights(folder) == plain_weights(config)
    kept = [load_checkpoint(path)[0] for path in sorted((folder / "checkpoints").glob("round-*"))]
    names = [{name for name in tensors if name.startswith("fake_score")} for tensors in kept]
    assert not names[0] and names[1] and names[1] == names[-1]  # none in the warm start
    one, two = (next(tensors[name] for name in sorted(names[1]) if "optimizer" not in name) for tensors in kept[-2:])
    assert not one.equal(two)
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["phase"] == "distribution_matching"]
    assert len(rows) == 3 and all(row["fake_score/loss"] > 0 for row in rows)


@pytest.mark.parametrize("method", ["contrast", "consistency", "progressive"])
def test_an_interrupted_run_with_an_earlier_student_ends_as_a_plain_loop(method: str, root: Path) -> None:
    """Progressive distillation is interrupted within its second stage."""
    own = {"contrast": "noises: 4", "consistency": "substeps: 3", "progressive": "halvings: 2"}[method]
    given = ("warm_start.rounds=0", f"{method}={{groups: 8, draws: 2, {own}}}", "learner.microbatch=8")
    config = smoke(root, method, f"method={method}", *given, "learner.rounds=4", "checkpoint={every: 1, keep: 4}")
    train(config, until=3)
    folder = train(config, resume=True)
    assert last_weights(folder) == plain_weights(config)
    last, before = (load_checkpoint(folder / "checkpoints" / f"round-{r:06d}")[0] for r in (4, 3))
    name = next(name for name in sorted(last) if name.startswith("earlier_student/average"))
    assert last[name].equal(before[name]) == (method == "progressive")
