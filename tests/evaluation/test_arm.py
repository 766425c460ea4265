"""One arm of the comparison: the metrics in it, their uncertainty and what real images would get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import prdc as authors
import pytest
import torch

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.arm import evaluate_arm, limits
from redif_ray.evaluation.encoders import Encoder, embedded, fit
from redif_ray.evaluation.features import Draw
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.paired import mse
from redif_ray.evaluation.seen import joined, see
from redif_ray.evaluation.summary import Arm, Limits
from redif_ray.types import LARGEST, PICTURES, Seen, WorkUnit

pytestmark = pytest.mark.slow
Real = tuple[torch.Tensor, list[int]]
Arms = Callable[..., dict[str, Any]]


def seen(images: torch.Tensor, teacher: torch.Tensor, conditions: Sequence[Any], encoder: Encoder) -> Seen:
    unit = WorkUnit(0, 0, "deploy", Stream.HELD_OUT, tuple(range(len(images))), tuple(conditions))
    return see(unit, images, teacher, {"l1": (images - teacher).abs().mean((1, 2, 3)).numpy()}, encoder)


@pytest.fixture(scope="module")
def arm(judge: Judge, encoder: Encoder) -> Callable[..., dict[str, Any]]:
    def measured(images: torch.Tensor, teacher: torch.Tensor, conditions: list[Any], **other: Any) -> dict[str, Any]:
        beside = seen(teacher, teacher, conditions, encoder)
        given: dict[str, Any] = {"nfe": 4, "resamples": 60, "seed": 3, "teacher": beside} | other
        return evaluate_arm(seen(images, teacher, conditions, encoder), judge, **given)

    return measured


@pytest.fixture(scope="module")
def good(arm: Arms, real: Real) -> dict[str, Any]:
    """Return the metrics of real images that are compared with themselves."""
    images, labels = real
    return arm(images, images, labels)


def test_real_images_against_themselves_and_against_noisy_ones(
    arm: Arms, encoder: Encoder, real: Real, good: dict[str, Any]
) -> None:
    images, labels = real
    grain = noise.normal(images.numel(), Stream.RESAMPLE, seed=0, round=50).reshape(images.shape)
    noisy = (images + 0.3 * torch.from_numpy(grain)).clamp(0, 1)
    bad = arm(noisy, images, labels)
    assert set(good) == set(Arm.model_fields)
    assert Arm.model_validate(good).model_dump(mode="json") == good
    assert good["paired"] == pytest.approx({"pixel_mse": 0, "pixel_psnr": 60, "judge_cosine": 1, "l1": 0})
    difference = (noisy.double() - images.double()).numpy()
    assert bad["paired"]["pixel_mse"] == pytest.approx((difference**2).mean())
    assert bad["paired"]["pixel_psnr"] == pytest.approx(np.mean(-10 * np.log10((difference**2).mean((1, 2, 3)))))
    assert bad["paired"]["l1"] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    ours, theirs = (torch.from_numpy(embedded(encoder, x, "cpu")).double() for x in (noisy, images))
    cosines = torch.nn.functional.cosine_similarity(ours, theirs)
    assert bad["paired"]["judge_cosine"] == pytest.approx(float(cosines.mean()))
    assert bad["frechet_ci"][0] > good["frechet_ci"][1]
    assert bad["kid"] > good["kid"] + 5 * good["kid_se"]
    assert bad["recall"] < good["recall"] and bad["class_accuracy"] < good["class_accuracy"]
    for found in (good, bad):
        assert found["frechet_ci"][0] < found["frechet"] < found["frechet_ci"][1]


def test_set_metrics_use_a_seeded_part_of_the_reference(
    arm: Arms, judge: Judge, encoder: Encoder, real: Real, good: dict[str, Any]
) -> None:
    images, labels = real
    rows = noise.permutation(400, Stream.RESAMPLE, seed=3, round=Draw.REFERENCE)[:120]
    features = embedded(encoder, images, "cpu").astype(np.float64)
    expected = authors.compute_prdc(judge.reference[rows], features, nearest_k=5)
    assert {k: good[k] for k in expected} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert good == arm(images, images, labels)
    assert good["frechet_ci"] != arm(images, images, labels, seed=4)["frechet_ci"]


def test_class_accuracy_needs_classes(arm: Arms, encoder: Encoder, real: Real) -> None:
    images, labels = real
    for conditions in ([None] * 120, ["an ankle boot"] * 120):
        assert arm(images, images, conditions, resamples=40)["class_accuracy"] is None
    expected = fit(encoder, embedded(encoder, images, "cpu"), labels)["class_accuracy"].mean()
    assert arm(images, images, list(np.array(labels)), resamples=40)["class_accuracy"] == expected


def test_limits_bound_what_real_images_get(judge: Judge, good: dict[str, Any]) -> None:
    found = limits(judge, 120, seed=0)
    assert found["frechet"] is not None and found["coverage"] is not None
    assert 0.5 < found["frechet"] / good["frechet"] < 2  # at n = 120 it varies much
    assert found["coverage"] == pytest.approx(1 - 2.0**-5, abs=0.06)
    assert found["count"] == 120 and found["class_accuracy"] is None
    known = limits(Judge("judge", judge.reference, {"class_accuracy": 0.75}), 120, seed=0)
    assert Limits.model_validate(known).class_accuracy == 0.75
    assert limits(judge, 5000, seed=0)["count"] == 200
    assert limits(judge, 5000, seed=0) == limits(judge, 200, seed=0)  # 400 reference images make two sets of 200


def test_refuses(arm: Arms, judge: Judge, encoder: Encoder, real: Real) -> None:
    images, labels = real
    beside = seen(images, images, labels, encoder)
    with pytest.raises(ValueError, match="120 images and 120 of the teacher; expected the same conditions"):
        evaluate_arm(seen(images, images, [0] * 120, encoder), judge, nfe=4, teacher=beside, resamples=60, seed=3)
    with pytest.raises(ValueError, match=r"images are \(120, 1, 28, 28\), the teacher's \(119, 1, 28, 28\)"):
        mse(images, images[1:])
    with pytest.raises(ValueError, match="400 reference images"):
        arm(images.repeat(4, 1, 1, 1), images.repeat(4, 1, 1, 1), labels * 4)
    for name, values, told in (
        ("pixel_mse", np.zeros(120, np.float32), "'pixel_mse' is built in"),
        ("odd", np.full(120, np.nan, np.float32), r"'odd' is .* or NaN; expected 120 finite"),
    ):
        with pytest.raises(ValueError, match=told):
            evaluate_arm(replace(beside, terms={name: values}), judge, nfe=4, teacher=beside, resamples=60, seed=3)


def test_work_units_joined_are_the_whole(encoder: Encoder, real: Real) -> None:
    images, labels = real
    noisy = (images + 0.1).clamp(0, 1)
    whole = seen(noisy, images, labels, encoder)
    units = [
        WorkUnit(0, i, "deploy", Stream.HELD_OUT, tuple(range(i, min(i + 7, 120))), tuple(labels[i : i + 7]))
        for i in range(0, 120, 7)
    ]
    terms = (noisy - images).abs().mean((1, 2, 3)).numpy()
    parts = [
        see(u, noisy[list(u.groups)], images[list(u.groups)], {"l1": terms[list(u.groups)]}, encoder) for u in units
    ]
    found = joined(parts)
    assert found.conditions == whole.conditions and found.darkest == whole.darkest == 0
    for name in ("pixel_mse", "pictures", "teacher_pictures"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))
    np.testing.assert_allclose(found.judged, whole.judged, atol=1e-4)
    assert np.array_equal(found.fit["class_accuracy"], whole.fit["class_accuracy"])
    assert np.array_equal(found.terms["l1"], whole.terms["l1"])
    assert np.array_equal(found.pictures, np.round(noisy[:PICTURES].numpy() * 255).astype(np.uint8))


def test_pictures_of_large_images_are_reduced() -> None:
    images = torch.zeros(3, 3, 1200, 700)
    images[:, :, :600] = 1
    unit = WorkUnit(0, 0, "deploy", Stream.HELD_OUT, (8, 9, 10), (None,) * 3)
    found = see(unit, images, images, {}, None)
    assert found.pictures.shape == (2, 3, 400, 234) and max(found.pictures.shape) <= LARGEST
    assert (found.pictures[:, :, :200] == 255).all() and (found.pictures[:, :, 200:] == 0).all()
    others = replace(unit, groups=(11, 12, 13))  # of which none is shown
    assert len(joined([found, see(others, images, images, {}, None)]).pictures) == 2
    with pytest.raises(ValueError, match="the judge was not asked"):
        _ = found.judged
