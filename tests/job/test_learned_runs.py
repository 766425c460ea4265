"""Whole runs with a reward that learns: nothing but the seed decides what becomes of it and of the student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from smoke_runs import last_weights, smoke, summary
from test_families import resumed

from redif_ray.checkpoint import load_checkpoint
from redif_ray.config import Config
from redif_ray.job.distill import distill
from redif_ray.job.evaluate import evaluate
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
TERMS = "reward.terms={mse: {normalise: std}, discriminator: {normalise: std, options: {lr: 1.0e-2, width: 4}}}"


def config(root: Path, name: str, *overrides: str) -> Config:
    """A checkpoint after each of 4 rounds: one of warm start, three with rewards."""
    return smoke(root, name, TERMS, "checkpoint.every=1", "checkpoint.keep=4", "evaluation.held_out=20", *overrides)


def state(folder: Path, version: int) -> dict[str, torch.Tensor]:
    """The discriminator and its optimiser."""
    tensors, _ = load_checkpoint(folder / "checkpoints" / f"round-{version:06d}")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("discriminator")}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def folder(cluster: None, root: Path) -> Path:
    return distill(config(root, "learned"))


def test_it_learns_after_each_policy_round_and_scores_the_next(folder: Path, plain: str) -> None:
    """Version r scores round r: nothing of the warm start, 0 of the first policy round, something of the second."""
    assert "discriminator/head.weight" in state(folder, 1) and not state(folder, 1)["discriminator/head.weight"].any()
    assert not equal(state(folder, 2), state(folder, 3)) and not equal(state(folder, 3), state(folder, 4))
    rows = read_rows(folder / "metrics.jsonl")
    assert [row.get("reward/discriminator_spread", 0) > 0 for row in rows] == [False, False, False, True, True]
    assert ["discriminator/loss" in row for row in rows] == [False, False, True, True, True]
    assert rows[0]["validation/discriminator"] == 0 != rows[-1]["validation/discriminator"]
    mse = summary(folder)["calibration"]["mse"]
    checked = [row for row in rows if "validation/mse" in row]
    shown = [(row["validation/reward"], row["validation/mse"]) for row in checked]
    assert all(reward == pytest.approx((value - mse["init"]) / mse["spread"]) for reward, value in shown)
    assert last_weights(folder) != plain
    found = summary(folder)
    assert found["calibration"]["discriminator"] == {"self": 0, "other_seed": 0, "init": 0, "spread": 0}
    assert len({arm["paired"]["discriminator"] for arm in found["arms"].values() if arm}) == 5
    assert found["compute"]["rewards"]["flops"] > 0


@pytest.mark.long
def test_evaluated_again_it_is_the_last_version_that_scores(folder: Path) -> None:
    found = json.loads(evaluate(folder, [], checkpoint="best", console=Console()).read_text())
    assert found["arms"] == summary(folder)["arms"]


@pytest.mark.long
def test_resumed_it_learns_on_as_if_nothing_had_happened(folder: Path, root: Path) -> None:
    """With other numbers of workers too."""
    weights, learned, paired = last_weights(folder), state(folder, 4), summary(folder)["arms"]["student"]["paired"]
    more = ("rollout.max_workers=2", "reward.max_workers=2")
    assert resumed(config(root, "learned", *more), folder) == weights
    assert equal(state(folder, 4), learned)
    assert summary(folder)["arms"]["student"]["paired"] == paired
