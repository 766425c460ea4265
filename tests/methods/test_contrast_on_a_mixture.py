"""A verdict on samples of a mixture in the plane: they move to where it is right, and stay where the teacher draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mixture_family import CENTRES, STD

from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights
from redif_ray.weights.store import policy_key

COUNT = 500
SOURCE = """
def right(student, teacher, conditions):
    return (student.flatten(1)[:, 0] > 0.5).float()
"""


def points(loop: PlainLoop, after: int) -> np.ndarray:
    """Return deployed samples in the plane, [500, 2] in [-1, 1]."""
    (unit,) = loop.plan.deploy(Stream.HELD_OUT, COUNT)
    _, _, final = loop.rollout.rollout(unit, get_weights(loop.student), policy_key(after))
    assert final is not None
    return np.asarray(final).reshape(COUNT, 2)


def trained(folder: Path, *given: str) -> tuple[np.ndarray, np.ndarray]:
    """Train on the verdict alone; return samples before and after."""
    torch.set_num_threads(1)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Mixture"}))
    (folder / "verdict.py").write_text(SOURCE)
    family = Path(__file__).with_name("mixture_family.py")
    teacher = f'{{model: {folder}, family: "{family}:load", solver: dpmpp_2m, steps: 100, store: {folder / "images"}}}'
    config: Config = load(
        "smoke",
        [
            f"teacher={teacher}",
            f"run={{root: {folder}}}",
            "student={steps: 2, schedule: uniform_trailing}",
            "conditions={}",
            f"reward={{terms: {{verdict: {{options: {{callable: {folder / 'verdict.py'}:right, teacher: false}}}}}}}}",
            f"evaluation={{batch: {COUNT}, held_out: 24, judge: random-features}}",
            "method=contrast",
            "warm_start={rounds: 0}",
            "learner={rounds: 60, lr: 1.0e-3, schedule: cosine, microbatch: 1024}",
            "contrast={groups: 256, noises: 64, draws: 4}",
            *given,
        ],
    )
    loop = PlainLoop(config)
    before = points(loop, 0)
    for round in range(loop.plan.rounds):
        loop.round(round)
    return before, points(loop, loop.plan.rounds)


def share(found: np.ndarray) -> float:
    return float((found[:, 0] > 0).mean())


def near(found: np.ndarray) -> float:
    """Return the share of samples within four standard deviations of one of the mixture's centres."""
    distances = np.linalg.norm(found[:, None] - CENTRES.numpy(), axis=2)
    return float((distances.min(1) < 4 * STD).mean())


@pytest.mark.long
def test_a_verdict_moves_the_images_to_where_it_is_right(tmp_path: Path) -> None:
    before, after = trained(tmp_path)
    print(f"right: {share(before):.3f} before, {share(after):.3f} after")
    assert 0.3 < share(before) < 0.7 and share(after) > 0.95
    assert after[:, 1].std() > 0.5 * before[:, 1].std()  # the verdict says nothing of this coordinate


@pytest.mark.long
def test_without_the_weights_of_the_verdict_nothing_is_learned(tmp_path: Path) -> None:
    before, after = trained(tmp_path, "learner.advantage_clip=1.0e+9")
    print(f"right: {share(before):.3f} before, {share(after):.3f} after")
    assert abs(share(after) - share(before)) < 0.05


LEARNER = "learner={rounds: 80, lr: 3.0e-3, schedule: cosine, microbatch: 1024}"
SCORES = "samples: 4, std: 0.1, sampled: true"


@pytest.mark.long
def test_a_verdict_alone_leaves_the_law_and_beside_distribution_matching_keeps_it(tmp_path: Path) -> None:
    found = {}
    matching = "distribution_matching={groups: 128, fake_steps: 10, fake_lr: 3.0e-3, reward_weight: 0.5}"
    for name, given in {
        "alone": ("method=output", LEARNER, f"output={{groups: 128, {SCORES}}}"),
        "beside": ("method=distribution_matching", LEARNER, matching, f"output={{{SCORES}}}"),
    }.items():
        (tmp_path / name).mkdir()
        _, found[name] = trained(tmp_path / name, *given)
        print(f"{name}: right {share(found[name]):.3f}, near a centre {near(found[name]):.3f}")
    assert share(found["alone"]) > 0.95 and near(found["alone"]) < 0.2
    assert share(found["beside"]) > 0.95 and near(found["beside"]) > 0.6
