"""Runs whose workers are a round ahead of the learner: which weights make a round is fixed, so all else is as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke_runs import last_weights, plain_weights, smoke
from test_families import resumed

from redif_ray.checkpoint import load_checkpoint
from redif_ray.config import Config
from redif_ray.pipeline.distill import distill
from redif_ray.pipeline.rows import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def stale(root: Path, *overrides: str) -> Config:
    return smoke(root, "stale", "pipeline.staleness=1", "checkpoint.every=1", *overrides)


def test_a_plain_loop_ends_with_the_same_weights(first: Path, root: Path) -> None:
    assert plain_weights(smoke(root, "plain")) == last_weights(first)


def test_a_round_ahead(first: Path, root: Path) -> None:
    """With two workers of each kind, and resumed with one: the weights of a plain loop that knows of no overlap."""
    folder = distill(stale(root, "rollout.workers=2", "reward.workers=2"))
    last = last_weights(folder)
    assert last == plain_weights(stale(root)) != last_weights(first)
    assert [row.get("staleness") for row in read_rows(folder / "metrics.jsonl")] == [None, 0, 1, 1, 1]
    before_the_last = sorted((folder / "checkpoints").glob("round-*"))[-2]
    assert load_checkpoint(before_the_last)[1]["stale"] == ["policy-2"]  # of round 3, which was being rolled out
    assert resumed(stale(root), folder) == last
