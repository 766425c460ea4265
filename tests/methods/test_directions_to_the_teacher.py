"""Scores along the way to the teacher's image, whose gradient is known where the reward is agreement with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from redif_ray.config import Config, load
from redif_ray.loop import PlainLoop
from redif_ray.methods import phases_of
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.calls import network_calls

TWO = ("output.sampled=true", "output.samples=2")
NEAR = 0.06  # the agreement does not see pixels beyond [0, 1], which the way to the teacher's image has, too


def config(root: Path, *given: str) -> Config:
    found: Config = load(
        "smoke",
        [
            f"run.root={root}",
            "tracking.uri=off",
            "method=output",
            "warm_start.rounds=0",
            "learner={rounds: 1, max_grad_norm: 1000}",
            "rollout={groups: 4, siblings: 2, unit_groups: 2}",
            "reward.terms={mse: {}}",
            "output.groups=4",
            *given,
        ],
    )
    return found


def gradient(settings: Config) -> Tensor:
    """The gradient of a round with respect to the student's weights, as Adam's first moment has it."""
    loop = PlainLoop(settings)
    loop.round(0)
    optimizer = loop.trainee.learning.optimizer
    moments = [optimizer.state[p]["exp_avg"].flatten() for group in optimizer.param_groups for p in group["params"]]
    return torch.cat(moments)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return gradient(config(tmp_path_factory.mktemp("exact")))


def test_two_scores_towards_the_teacher_have_the_gradient_of_the_agreement(exact: Tensor, tmp_path: Path) -> None:
    found = gradient(config(tmp_path, *TWO, "output.directions=teacher"))
    assert float((found - exact).norm() / exact.norm()) < NEAR
    white = gradient(config(tmp_path / "white", *TWO))
    assert float(torch.cosine_similarity(white, exact, dim=0)) < 0.5


def test_a_term_in_units_of_its_spread_has_the_size_of_the_exact_one(tmp_path: Path) -> None:
    term = "reward.terms={mse: {normalise: std}}"
    one = gradient(config(tmp_path / "exact", term))
    found = gradient(config(tmp_path / "found", *TWO, term, "output.directions=teacher"))
    assert float((found - one).norm() / one.norm()) < NEAR


def test_the_estimate_counts_the_encoding_of_the_teacher_s_images(tmp_path: Path) -> None:
    counted = []
    for given in (TWO, (*TWO, "output.directions=teacher"), ("output.directions=teacher",)):
        settings = config(tmp_path, *given)
        teacher = teacher_outline(settings.teacher)
        calls = network_calls(settings, teacher, PlainLoop(settings).plan, decode=1.0)
        (phase,) = phases_of(settings)
        counted.append((phase.encodes_in_worker, calls[phase.title]["reward"]))
    assert [encodes for encodes, _ in counted] == [False, True, False]
    assert counted[1][1] - counted[0][1] == 4  # an image for each group of the round
