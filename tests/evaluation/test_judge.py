"""The judge: loaded by name or folder, features computed once, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_parquet

from redif_ray.data.images import ImageSet, load_images
from redif_ray.evaluation.frechet import frechet
from redif_ray.evaluation.judge import JUDGES, Judge, JudgeError, embedded, load_judge, make_encoder
from redif_ray.evaluation.kid import kid_to
from redif_ray.models.classifier import Classifier, ClassifierError

Real = tuple[torch.Tensor, list[int]]


def test_shipped_judge_knows_the_whole_test_set(shipped: Judge) -> None:
    assert shipped.name == "fashion-mnist-b"
    assert shipped.reference.labels is not None
    assert np.bincount(shipped.reference.labels).tolist() == [1000] * 10


def test_embeddings_do_not_depend_on_the_batch(judge: Judge, real: Real) -> None:
    images = real[0].repeat(3, 1, 1, 1)  # more than one batch
    found = judge.embed(images)
    assert found.dtype == np.float64 and found.shape == (360, 64)
    with torch.no_grad():
        np.testing.assert_allclose(found[:120], judge.encoder.embedding(real[0]).numpy(), atol=1e-5)
    np.testing.assert_allclose(found[240:], found[:120], atol=1e-5)


def test_reference_is_computed_once_and_used_by_the_metrics(judge: Judge, real: Real) -> None:
    reference = judge.reference_features()
    assert reference is judge.reference_features()
    np.testing.assert_allclose(reference, judge.embed(torch.tensor(judge.reference.images) / 255), atol=1e-5)
    features = judge.embed(real[0])
    assert judge.frechet(features) == pytest.approx(frechet(features, reference))
    scale = np.linalg.norm(reference) / np.sqrt(reference.size)
    assert judge.kid(features) == pytest.approx(kid_to(reference / scale)(features / scale))


def test_class_accuracy_counts(judge: Judge, real: Real) -> None:
    features, labels = judge.embed(real[0]), real[1]
    right = judge.class_accuracy(features, labels)
    with torch.no_grad():
        classes = judge.encoder.logits(real[0]).argmax(1)
    assert right == pytest.approx(float((classes == torch.tensor(labels)).double().mean())) and right > 0.83
    wrong = [(label + 1) % 10 for label in labels]
    assert judge.class_accuracy(features, wrong) <= 1 - right
    mixed = judge.class_accuracy(np.concatenate([features, features]), labels + wrong)
    assert mixed == pytest.approx((right + judge.class_accuracy(features, wrong)) / 2)


def test_features_may_be_computed_elsewhere(judge: Judge, real: Real) -> None:
    asked = []

    def elsewhere(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return embedded(judge.encoder, images, "cpu")

    other = Judge(judge.encoder, judge.reference, elsewhere=elsewhere)
    assert np.array_equal(other.see(real[0]).features, judge.embed(real[0]))
    assert np.array_equal(other.reference_features(), judge.reference_features())
    assert asked == [120, 400]


def test_refuses(judge: Judge, real: Real, tmp_path: Path) -> None:
    images, labels = real
    with pytest.raises(JudgeError, match=r"'inception'; expected fashion-mnist"):
        make_encoder("inception", (3, 32, 32))
    with pytest.raises(JudgeError, match="120 images and 3 labels"):
        judge.class_accuracy(judge.embed(images), labels[:3])
    with pytest.raises(JudgeError, match=r"labels span 0\.\.10"):
        judge.class_accuracy(judge.embed(images[:2]), [0, 10])
    with pytest.raises(ClassifierError, match="expected"):
        judge.embed(images * 2 - 1)
    with pytest.raises(JudgeError, match="uint8"):
        judge.embed((images * 255).byte())
    with pytest.raises(JudgeError, match="reference images are"):
        Judge(Classifier("conv", "other", (3, 28, 28), ("a", "b")), judge.reference)


def test_a_folder_with_its_own_reference(judge: Judge, real: Real, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(JUDGES["fashion-mnist"][0], folder)
    few = ImageSet(judge.reference.images[:20], None, ())
    write_parquet(folder / "reference.parquet", few)
    mine = load_judge(str(folder))
    np.testing.assert_allclose(mine.reference_features(), judge.reference_features()[:20], atol=1e-5)
    assert len(load_images(folder / "reference.parquet")) == 20
