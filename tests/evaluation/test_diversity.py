"""Diversity: the distances of every two images of a condition, by hand, and the way that they take."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_encoders import write_clip, write_dino
from tiny_models import normal
from torch import Tensor
from transformers import AutoModel

from redif_ray import config
from redif_ray.config import ConfigError, load
from redif_ray.data.conditions import load_conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.diversity import diversity, load_likeness, mean_distance
from redif_ray.job import batches
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.calls import network_calls, prices
from redif_ray.planning.disk import disk
from redif_ray.planning.memory import footprints
from redif_ray.planning.paths import absolute
from redif_ray.planning.rounds import RoundPlan
from redif_ray.rewards.preparation import CLIP_MEAN, CLIP_STD


def by_hand(features: Tensor, noises: int) -> np.ndarray:
    """Loop over conditions and pairs."""
    unit = features.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    sets = [unit[i : i + noises] for i in range(0, len(unit), noises)]
    return np.array([np.mean([1 - x @ y for x, y in combinations(each, 2)]) for each in sets])


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("dino"))


def settings(dino: Path, root: Path, *more: str) -> config.Config:
    """The small run, with three conditions of three noises each."""
    own = [f"evaluation.diversity={{encoder: {dino}, conditions: 3, noises: 3}}", "evaluation.batch=8"]
    return absolute(load("smoke", [f"run.root={root}", "tracking.uri=off", *own, *more]))


@pytest.mark.parametrize("noises", [2, 5])
def test_the_mean_distance_of_all_pairs(noises: int) -> None:
    features = normal(3 * noises, 7, seed=1)
    np.testing.assert_allclose(mean_distance(features, noises), by_hand(features, noises), atol=1e-12)
    equal = normal(3, 7, seed=2).repeat_interleave(noises, 0)
    np.testing.assert_allclose(mean_distance(equal, noises), 0, atol=1e-12)


def test_opposite_images_are_two_apart() -> None:
    one = normal(1, 7, seed=1)
    assert mean_distance(torch.cat([one, -3 * one]), 2).item() == pytest.approx(2)


def test_the_whole_image_is_compared_by_its_class_token(dino: Path) -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(dino)((images - mean) / std).last_hidden_state[:, 0]
        found = load_likeness(config.Diversity(encoder=str(dino)), (3, 16, 16)).features(images)[:, 0]
    torch.testing.assert_close(found, expected)


def test_an_encoder_of_another_kind_is_named_by_its_key(tmp_path: Path) -> None:
    wanted = config.Diversity(encoder=str(write_clip(tmp_path / "clip")))
    with pytest.raises(ConfigError, match=r"evaluation.diversity.encoder: .*is a clip; expected one of: dinov2"):
        load_likeness(wanted, (3, 16, 16))


def test_the_error_is_that_of_the_paired_difference() -> None:
    distances = np.array([[0.3, 0.5], [0.1, 0.2], [0.5, 0.8]])
    found = diversity(config.Diversity(encoder="org/name@main", noises=6), distances)
    expected = {"conditions": 3, "noises": 6, "student": 0.3, "teacher": 0.5, "change_se": 0.1 / 3**0.5}
    assert found.pop("encoder") == "name" and found == pytest.approx(expected)


def test_a_work_unit_holds_all_noises_of_its_held_out_conditions(dino: Path, tmp_path: Path) -> None:
    """Also where there are fewer conditions than are asked for, which come again with other noises."""
    given = settings(dino, tmp_path)
    drawn = replace(load_conditions(given.conditions, num_classes=10, captions=False, seed=0), held_out=("a", "b"))
    units = RoundPlan(given, drawn).deploy(Stream.DIVERSITY, given.evaluation.diversity.count)
    assert [unit.groups for unit in units] == [(0, 1, 2, 3, 4, 5), (6, 7, 8)]
    (first, last) = (unit.conditions for unit in units)
    assert {first[:3], first[3:]} == {("a",) * 3, ("b",) * 3} and last in ({("a",) * 3, ("b",) * 3})


@pytest.mark.slow
def test_a_reward_worker_measures_the_students_and_the_teachers_images(dino: Path, tmp_path: Path) -> None:
    loop = PlainLoop(settings(dino, tmp_path))
    unit = loop.plan.deploy(Stream.DIVERSITY, 9)[0]
    shape = (len(unit.groups), *loop.reward.teacher.latent_shape)
    final = 0.5 * normal(*shape, seed=3).numpy()
    meta, scored = loop.reward.score(unit, final)
    likeness = load_likeness(loop.config.evaluation.diversity, loop.reward.teacher.image_shape)
    made = [loop.reward.teacher.images(torch.from_numpy(final)), torch.from_numpy(loop.reward.targets(unit)[1].copy())]
    expected = np.stack([by_hand(likeness.features(images)[:, 0], 3) for images in made], 1)
    assert scored.diversity is not None and scored.diversity.shape == (2, 2) and scored.seen is None
    np.testing.assert_allclose(scored.diversity, expected, atol=1e-6)
    assert expected.min() > 1e-4 and {work.component for work in meta.work} == {"teacher", "evaluation"}
    assert loop.reward.likeness is not None
    assert loop.reward.likeness.network in loop.reward._belongings()  # so it leaves a GPU that the learner needs


@pytest.mark.slow
def test_it_is_counted(dino: Path, tmp_path: Path) -> None:
    given, without = settings(dino, tmp_path), settings(dino, tmp_path, "evaluation.diversity.encoder=null")
    teacher = teacher_outline(given.teacher)
    image = 4 * torch.Size(teacher.image_shape).numel()
    assert disk(given, teacher).targets - disk(without, teacher).targets == 9 * image
    more = footprints(given).roles["reward"].weights - footprints(without).roles["reward"].weights
    drawn = load_conditions(given.conditions, num_classes=10, captions=False, seed=0)
    calls, fewer = (network_calls(c, teacher, RoundPlan(c, drawn), 0.25)["evaluation"] for c in (given, without))
    student, target = given.student.steps, prices(given, teacher).target
    assert {role: calls[role] - fewer[role] for role in calls} == {
        "rollout": 9 * student,
        "reward": pytest.approx(9 * (target + 2 * 0.25)),
    }
    weights = (dino / "model.safetensors").stat().st_size / 1e6
    assert more == pytest.approx(weights, abs=1e-3)


def test_more_noises_than_are_made_at_once(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.diversity.noises=9: .*evaluation.batch=8; expected at most as"):
        settings(dino, tmp_path, "evaluation.diversity.noises=9")
    given = settings(dino, tmp_path, "evaluation.batch=null")
    chosen = given.model_copy(update={"evaluation": given.evaluation.model_copy(update={"batch": 2})})
    monkeypatch.setattr(batches, "nodes", lambda _: [])
    monkeypatch.setattr(batches, "chosen", lambda *_: (chosen, "two fit"))
    with pytest.raises(ConfigError, match=r"noises=3: .*evaluation.batch=2"):
        batches.with_batches(given, Console(quiet=True))
