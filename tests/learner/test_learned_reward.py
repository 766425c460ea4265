"""The learned reward at a reward worker and at the learner, with rounds made by hand; Ray is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.learner.learned_reward import LearnedReward
from redif_ray.models.registry import load_model
from redif_ray.planning import factory
from redif_ray.types import Meta, Scored, Trajectories, WorkUnit
from redif_ray.weights.store import StaleWeightsError
from redif_ray.workers import reward
from redif_ray.workers.reward import TeacherRewardWorker

OPTIONS = "{lr: 1.0e-2, width: 4, conditional: true}"


def config(*overrides: str) -> Config:
    terms = f"reward.terms={{mse: {{}}, discriminator: {{options: {OPTIONS}}}}}"
    return load("smoke", [terms, "learner.anchor.weight=0", *overrides])


def learned(config: Config) -> LearnedReward:
    term = factory.learned_reward(config, load_model("fashion-mnist"), "cpu")
    assert term is not None
    return LearnedReward(config, term, None)


def image(*ids: int) -> np.ndarray:
    return np.random.default_rng(ids).random((1, 28, 28), dtype=np.float32)


def played(config: Config, of: LearnedReward, round: int) -> tuple[list[tuple[Meta, ...]], dict[int, Any]]:
    """A round of 2 work units of one group, scored by `of` as it is: every image is one of its own, and read-only."""
    metas, parts = [], {}
    for index in (0, 1):
        unit = WorkUnit(round, index, "policy", Stream.TRAIN, (index,), (3 + index,), config.rollout.siblings)
        images = np.stack([image(round, index, k) for k in range(unit.rows)])
        targets = image(round, index, 99)[None] * 0.5
        for array in (images, targets):
            array.setflags(write=False)
        metas.append((Meta(unit, "reward-0", (), learned_sha256=weights_sha256(of.weights())),))
        parts[index] = (None, Scored(unit, {}, targets, None, images))
    return metas, parts


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_taken_up_from_a_checkpoint_it_learns_on_alike() -> None:
    whole, cut = learned(config()), learned(config())
    for round in range(3):
        whole.update(round, *played(config(), whole, round))
    for round in range(2):
        cut.update(round, *played(config(), cut, round))
    again = learned(config())
    again.load({f"student/{k}": v for k, v in cut.weights().items()} | cut.state())
    assert equal(again.state(), cut.state())
    again.update(2, *played(config(), again, 2))
    assert equal(again.state(), whole.state())
    assert not equal(again.weights(), cut.weights())


def test_the_order_in_which_units_arrive_does_not_matter() -> None:
    one, two = learned(config()), learned(config())
    metas, parts = played(config(), one, 0)
    one.update(0, metas, parts)
    two.update(0, metas, dict(reversed(parts.items())))
    assert equal(one.state(), two.state())


def test_scores_of_another_version_are_refused() -> None:
    of = learned(config())
    old = played(config(), of, 0)
    of.update(0, *old)
    before = of.weights()
    with pytest.raises(StaleWeightsError, match="work unit 0 of round 1 was scored by the discriminator"):
        of.update(1, *old)
    metas, parts = played(config(), of, 1)
    metas[1] = (replace(metas[1][0], learned_sha256=None),)
    with pytest.raises(StaleWeightsError, match="work unit 1 of round 1 was scored by the discriminator none"):
        of.update(1, metas, parts)
    assert equal(of.weights(), before)


def test_images_of_another_round_are_refused() -> None:
    of = learned(config())
    with pytest.raises(ValueError, match="round 1: the images are those of other work units"):
        of.update(1, played(config(), of, 1)[0], played(config(), of, 0)[1])


@pytest.mark.slow
def test_siblings_that_the_teacher_guided_are_not_the_students() -> None:
    """The last 2 of 4 change nothing; the first 2 do."""
    guided = config("rollout.guided=2")

    def after(*changed: int) -> dict[str, Tensor]:
        of = learned(guided)
        metas, parts = played(guided, of, 0)
        for trajectories, scored in list(parts.values()):
            images = scored.images.copy()
            for k in changed:
                images[k] = 0.25
            parts[scored.unit.index] = (trajectories, replace(scored, images=images))
        of.update(0, metas, parts)
        return of.weights()

    assert equal(after(2, 3), after())
    assert not equal(after(1), after())


def test_flops_and_metrics_of_a_round() -> None:
    of = learned(config())
    found = of.update(0, *played(config(), of, 0))
    assert set(found) == {
        f"discriminator/{name}"
        for name in ("loss", "penalty", "student_accuracy", "teacher_accuracy", "ranked", "seconds", "flops")
    }
    maps = [(1, 4, 14 * 14), (4, 8, 7 * 7), (8, 16, 4 * 4)]
    forward = 2 * (sum(9 * inputs * outputs * places for inputs, outputs, places in maps) + 16 * 16)
    assert found["discriminator/flops"] == forward * (8 + 4 * (3 * 8 + 6.5 * 2))


@pytest.mark.slow
def test_a_worker_scores_with_the_version_that_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backwards and forwards, on one worker; the images that it scored go with the scores, decoded once."""
    settings = config(f"run.root={tmp_path}")
    of = learned(settings)
    store = {"discriminator-0": of.weights()}
    for round in range(2):
        of.update(round, *played(settings, of, round))
        store[f"discriminator-{round + 1}"] = of.weights()
    monkeypatch.setattr(reward, "fetch", lambda weights, key: (weights[key], weights_sha256(weights[key])))
    worker = TeacherRewardWorker("reward-0", settings)
    unit = WorkUnit(1, 0, "policy", Stream.TRAIN, (0,), (3,), 4)
    latents = np.stack([np.stack([2 * image(k) - 1 for k in range(4)])] * 3)
    trajectories = Trajectories(unit, 1, "", latents[:1, :1], latents[1:], np.zeros((2, 4), np.float32), None)
    targets = image(99)[None]
    for version in (1, 0, 2, 1):
        meta, scored = worker.score(unit, latents[-1], trajectories, targets, store, f"discriminator-{version}")
        of.term.load(store[f"discriminator-{version}"])
        assert scored.images is not None and meta.terms is not None
        expected = of.term.network(torch.from_numpy(scored.images), torch.tensor([3] * 4))
        assert meta.terms["discriminator"].tolist() == expected.tolist()
        assert meta.learned_sha256 == weights_sha256(store[f"discriminator-{version}"])
        np.testing.assert_allclose(scored.images, (latents[-1] + 1) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="learned reward None: expected a key"):
        worker.score(unit, latents[-1], trajectories, targets)
