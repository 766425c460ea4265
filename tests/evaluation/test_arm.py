"""One arm of the comparison: the metrics in it, their uncertainty and what real images would get."""

from __future__ import annotations

from typing import Any

import numpy as np
import prdc as authors
import pytest
import torch

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.arm import evaluate_arm, limits
from redif_ray.evaluation.features import Draw
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.summary import Arm

pytestmark = pytest.mark.slow
Real = tuple[torch.Tensor, list[int]]


def arm(
    judge: Judge, images: torch.Tensor, teacher: torch.Tensor, conditions: list[Any], **other: Any
) -> dict[str, Any]:
    terms = {"l1": (images - teacher).abs().mean((1, 2, 3)).numpy()} if len(images) == len(teacher) else {}
    given: dict[str, Any] = {"nfe": 4, "terms": terms, "resamples": 60, "seed": 3} | other
    return evaluate_arm(judge.see(images), conditions, judge, teacher=judge.see(teacher), **given)


@pytest.fixture(scope="module")
def good(judge: Judge, real: Real) -> dict[str, Any]:
    """What real images get, compared with themselves."""
    images, labels = real
    return arm(judge, images, images, labels)


def test_real_images_against_themselves_and_against_noisy_ones(judge: Judge, real: Real, good: dict[str, Any]) -> None:
    images, labels = real
    grain = noise.normal(images.numel(), Stream.RESAMPLE, seed=0, round=50).reshape(images.shape)
    noisy = (images + 0.3 * torch.from_numpy(grain)).clamp(0, 1)
    bad = arm(judge, noisy, images, labels)
    assert set(good) == set(Arm.model_fields)
    assert Arm.model_validate(good).model_dump(mode="json") == good
    assert good["paired"] == pytest.approx({"pixel_mse": 0, "pixel_psnr": 60, "judge_cosine": 1, "l1": 0})
    difference = (noisy.double() - images.double()).numpy()
    assert bad["paired"]["pixel_mse"] == pytest.approx((difference**2).mean())
    assert bad["paired"]["pixel_psnr"] == pytest.approx(np.mean(-10 * np.log10((difference**2).mean((1, 2, 3)))))
    assert bad["paired"]["l1"] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    ours, theirs = (torch.from_numpy(judge.embed(x)) for x in (noisy, images))
    cosines = torch.nn.functional.cosine_similarity(ours, theirs)
    assert bad["paired"]["judge_cosine"] == pytest.approx(float(cosines.mean()))
    assert bad["frechet_ci"][0] > good["frechet_ci"][1]
    assert bad["kid"] > good["kid"] + 5 * good["kid_se"]
    assert bad["recall"] < good["recall"] and bad["class_accuracy"] < good["class_accuracy"]
    for found in (good, bad):
        assert found["frechet_ci"][0] < found["frechet"] < found["frechet_ci"][1]


def test_set_metrics_use_a_seeded_part_of_the_reference(judge: Judge, real: Real, good: dict[str, Any]) -> None:
    images, labels = real
    rows = noise.permutation(400, Stream.RESAMPLE, seed=3, round=Draw.REFERENCE)[:120]
    expected = authors.compute_prdc(judge.reference_features()[rows], judge.embed(images), nearest_k=5)
    assert {k: good[k] for k in expected} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert good == arm(judge, images, images, labels)
    assert good["frechet_ci"] != arm(judge, images, images, labels, seed=4)["frechet_ci"]


def test_class_accuracy_needs_classes(judge: Judge, real: Real) -> None:
    images, labels = real
    for conditions in ([None] * 120, ["an ankle boot"] * 120):
        assert arm(judge, images, images, conditions, resamples=40)["class_accuracy"] is None
    expected = judge.class_accuracy(judge.embed(images), labels)
    assert arm(judge, images, images, list(np.array(labels)), resamples=40)["class_accuracy"] == expected


def test_limits_bound_what_real_images_get(judge: Judge, good: dict[str, Any]) -> None:
    found = limits(judge, 120, seed=0)
    assert 0.5 < found["frechet"] / good["frechet"] < 2  # at n = 120 it varies much
    assert found["coverage"] == pytest.approx(1 - 2.0**-5, abs=0.06)
    assert limits(judge, 5000, seed=0) == limits(judge, 200, seed=0)  # 400 reference images make two sets of 200


def test_refuses(judge: Judge, real: Real) -> None:
    images, labels = real
    with pytest.raises(ValueError, match="119 conditions; expected one of each"):
        arm(judge, images, images, labels[1:])
    with pytest.raises(ValueError, match=r"teacher images \(119, 1, 28, 28\)"):
        arm(judge, images, images[1:], labels)
    with pytest.raises(ValueError, match="400 reference images"):
        arm(judge, images.repeat(4, 1, 1, 1), images.repeat(4, 1, 1, 1), labels * 4)
    with pytest.raises(ValueError, match="'pixel_mse' is built in"):
        arm(judge, images, images, labels, terms={"pixel_mse": np.zeros(120, np.float32)})
    with pytest.raises(ValueError, match=r"'odd' is .* or NaN; expected 120 finite"):
        arm(judge, images, images, labels, terms={"odd": np.full(120, np.nan, np.float32)})
