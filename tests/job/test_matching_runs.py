"""A run of distribution matching on Ray, whose second network survives an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke_runs import last_weights, plain_weights, smoke, train

from redif_ray.checkpoint import load_checkpoint
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def test_an_interrupted_run_ends_as_a_plain_loop(root: Path) -> None:
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
