"""Each method brings a student of two steps towards the law of a mixture in the plane.

Both samples come from the same noises, so that their W2 distance is 0 for a student that follows the teacher exactly.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights
from redif_ray.weights.store import policy_key

COUNT = 500
UNTRAINED = 0.387  # W2 of two Euler steps
BASE = (
    "student={steps: 2, schedule: uniform_trailing}",
    "conditions={}",
    "reward={terms: {mse: {}}}",
    f"evaluation={{batch: {COUNT}, held_out: 24, judge: random-features}}",
)


def distance(loop: PlainLoop, after: int) -> float:
    """Return the W2 distance between images of the student and of the teacher, from the same noises."""
    (unit,) = loop.plan.deploy(Stream.HELD_OUT, COUNT)
    _, _, final = loop.rollout.rollout(unit, get_weights(loop.student), policy_key(after))
    _, images = loop.reward.targets(unit)
    assert final is not None
    cost = cdist(final.reshape(COUNT, 2), 2 * images.reshape(COUNT, 2) - 1, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def trained(folder: Path, *given: str) -> float:
    """Train for all rounds; return the W2 distance after them."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Mixture"}))
    family = Path(__file__).with_name("mixture_family.py")
    teacher = f'{{model: {folder}, family: "{family}:load", solver: dpmpp_2m, steps: 100, store: {folder / "images"}}}'
    config: Config = load("smoke", [f"teacher={teacher}", f"run={{root: {folder}}}", *BASE, *given])
    loop = PlainLoop(config)
    assert distance(loop, 0) == pytest.approx(UNTRAINED, abs=0.01)
    for round in range(loop.plan.rounds):
        loop.round(round)
    return distance(loop, loop.plan.rounds)


LEARNER = "learner={rounds: 80, lr: 3.0e-3, schedule: cosine, microbatch: 1024}"
UNITS = "rollout={groups: 32, siblings: 16, unit_groups: 32}"
WARM = "rounds: 80, groups: 256, minibatch: 128, lr: 3.0e-3, schedule: cosine"
NONE = "warm_start={rounds: 0}"
MATCHING, FAKE = "method=distribution_matching", "distribution_matching={groups: 128, fake_steps: 10, fake_lr: 3.0e-3}"
ARMS = {
    "sfd": ("method=sfd", UNITS, f"warm_start={{{WARM}, substeps: 20}}"),
    "redif": ("method=redif", NONE, LEARNER, UNITS, "exploration={eta: 0.5}"),
    "output": ("method=output", NONE, LEARNER, UNITS, "output={groups: 128, samples: 4, std: 0.1, sampled: true}"),
    "straight": ("method=straight", NONE, LEARNER, UNITS, "output={groups: 128}"),
    "distribution_matching": (MATCHING, NONE, LEARNER, UNITS, FAKE),
    "consistency": ("method=consistency", NONE, LEARNER, UNITS, "consistency={groups: 256, substeps: 16, decay: 0.9}"),
    "progressive": ("method=progressive", NONE, LEARNER, UNITS, "progressive={groups: 256, halvings: 4}"),
    "draft": ("method=draft", NONE, LEARNER, UNITS, "draft={groups: 128, minibatch: 128}"),
}
WITHIN = {"progressive": 0.19}


@pytest.mark.long
@pytest.mark.parametrize("name", ARMS)
def test_a_method_comes_closer_to_the_law_of_a_mixture(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = trained(tmp_path, *ARMS[name])
    print(f"{name}: W2 {found:.3f}")
    assert found < WITHIN.get(name, 0.7 * UNTRAINED)


@pytest.mark.long
def test_a_regression_to_jumps_of_one_step_learns_nothing(tmp_path: Path) -> None:
    """Such a jump is the student's own first answer, so the several steps of a jump are what regression needs."""
    torch.set_num_threads(1)
    found = trained(tmp_path, "method=sfd", UNITS, f"warm_start={{{WARM}, substeps: 1}}")
    print(f"jumps of one step: W2 {found:.3f}")
    assert found == pytest.approx(UNTRAINED, abs=0.01)


@pytest.mark.long
def test_distribution_matching_learns_nothing_from_a_fake_score_that_does_not_learn(tmp_path: Path) -> None:
    """It stays the teacher, so there is no difference between the two to descend."""
    torch.set_num_threads(1)
    still = "distribution_matching={groups: 128, fake_lr: 1.0e-12}"
    found = trained(tmp_path, MATCHING, NONE, LEARNER, UNITS, still)
    print(f"a still fake score: W2 {found:.3f}")
    assert found == pytest.approx(UNTRAINED, abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, given, least", [("consistency", "substeps: 1", 0.37), ("progressive", "halvings: 1", 0.2)]
)
def test_steps_that_are_not_divided_further_teach_less(name: str, given: str, least: float, tmp_path: Path) -> None:
    """One step of the teacher to a segment's end teaches nothing, and one halving ends at four Euler steps."""
    torch.set_num_threads(1)
    found = trained(tmp_path, f"method={name}", NONE, LEARNER, UNITS, f"{name}={{groups: 256, {given}}}")
    print(f"{name}, {given}: W2 {found:.3f}")
    assert found > least
