"""Whole runs with a reward that learns: nothing but the seed decides what becomes of it and of the student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from learned_run import learned_run
from rich.console import Console
from smoke_runs import last_weights, summary
from test_families import resumed

from redif_ray.checkpoint import load_checkpoint
from redif_ray.job.evaluate import evaluate
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.usefixtures("cluster")]


def state(folder: Path, version: int) -> dict[str, torch.Tensor]:
    """The discriminator and its optimiser."""
    tensors, _ = load_checkpoint(folder / "checkpoints" / f"round-{version:06d}")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("discriminator")}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_after_each_policy_round_and_scores_the_next(learned: Path, plain: str) -> None:
    """Version r scores round r: nothing of the warm start, 0 of the first policy round, something of the second."""
    assert "discriminator/head.weight" in state(learned, 1) and not state(learned, 1)["discriminator/head.weight"].any()
    assert not equal(state(learned, 2), state(learned, 3)) and not equal(state(learned, 3), state(learned, 4))
    rows = read_rows(learned / "metrics.jsonl")
    assert [row.get("reward/discriminator_spread", 0) > 0 for row in rows] == [False, False, False, True, True]
    assert ["discriminator/loss" in row for row in rows] == [False, False, True, True, True]
    assert rows[0]["validation/discriminator"] == 0 != rows[-1]["validation/discriminator"]
    mse = summary(learned)["calibration"]["mse"]
    checked = [row for row in rows if "validation/mse" in row]
    shown = [(row["validation/reward"], row["validation/mse"]) for row in checked]
    weight = 1 + 0.5  # of the term that its workers alone can import, which equals this one
    assert all(reward == pytest.approx(weight * (value - mse["init"]) / mse["spread"]) for reward, value in shown)
    assert last_weights(learned) != plain
    found = summary(learned)
    assert found["calibration"]["discriminator"] == {"self": 0, "other_seed": 0, "init": 0, "spread": 0}
    assert len({arm["paired"]["discriminator"] for arm in found["arms"].values() if arm}) == 5
    assert found["compute"]["rewards"]["flops"] > 0


def test_evaluated_again_it_is_the_last_version_that_scores(learned: Path) -> None:
    found = json.loads(evaluate(learned, [], checkpoint="best", console=Console()).read_text())
    assert found["arms"] == summary(learned)["arms"]


def test_resumed_it_learns_on_as_if_nothing_had_happened(learned: Path) -> None:
    """With other numbers of workers too."""
    weights, version, paired = last_weights(learned), state(learned, 4), summary(learned)["arms"]["student"]["paired"]
    more = ("rollout.max_workers=2", "reward.max_workers=2")
    assert resumed(learned_run(learned.parents[1], *more), learned) == weights
    assert equal(state(learned, 4), version)
    assert summary(learned)["arms"]["student"]["paired"] == paired
