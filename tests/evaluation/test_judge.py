"""The judge: its encoder by name or folder, its reference read in parts, its statistics, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from redif_ray.data.errors import DataError
from redif_ray.data.images import ImageSet, write_parquet
from redif_ray.evaluation.encoders import Encoder, JudgeError, embedded, fit, load_encoder, make_encoder
from redif_ray.evaluation.frechet import frechet
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.judge_source import JUDGES, judge_files, needs_reference
from redif_ray.evaluation.kid import kid_to
from redif_ray.evaluation.reference import ReferenceImages, reference_count
from redif_ray.models.classifier import Classifier, ClassifierError

Real = tuple[torch.Tensor, list[int]]


@pytest.mark.slow
def test_shipped_judge_knows_the_whole_test_set(encoder: Encoder, shipped: ImageSet) -> None:
    assert encoder.name == "fashion-mnist-b" and reference_count("fashion-mnist", 7) == 10_000
    assert shipped.labels is not None
    assert np.bincount(shipped.labels).tolist() == [1000] * 10


def test_embeddings_do_not_depend_on_the_batch(encoder: Encoder, real: Real) -> None:
    images = real[0].repeat(3, 1, 1, 1)  # more than one batch
    found = embedded(encoder, images, "cpu")
    assert found.dtype == np.float32 and found.shape == (360, 64)
    with torch.no_grad():
        np.testing.assert_allclose(found[:120], encoder.embedding(real[0]).numpy(), atol=1e-5)
    np.testing.assert_allclose(found[240:], found[:120], atol=1e-5)


def test_the_metrics_use_the_reference(judge: Judge, encoder: Encoder, real: Real) -> None:
    reference = judge.reference
    assert reference.dtype == np.float64 and reference.shape == (400, 64)
    features = embedded(encoder, real[0], "cpu").astype(np.float64)
    assert judge.frechet(features) == pytest.approx(frechet(features, reference))
    scale = np.linalg.norm(reference) / np.sqrt(reference.size)
    assert judge.kid(features) == pytest.approx(kid_to(reference / scale)(features / scale))


def test_class_accuracy_counts(encoder: Encoder, real: Real) -> None:
    features, labels = embedded(encoder, real[0], "cpu"), real[1]
    found = fit(encoder, features, labels)["class_accuracy"]
    assert isinstance(encoder, Classifier)
    with torch.no_grad():
        classes = encoder.logits(real[0]).argmax(1)
    assert np.array_equal(found, (classes == torch.tensor(labels)).numpy()) and found.mean() > 0.83
    wrong = [(label + 1) % 10 for label in labels]
    assert fit(encoder, features, wrong)["class_accuracy"].mean() <= 1 - found.mean()
    assert fit(encoder, features, ["an ankle boot"] * 120) == {} and fit(encoder, features, [None] * 120) == {}


def test_refuses(encoder: Encoder, real: Real) -> None:
    images, labels = real
    with pytest.raises(JudgeError, match=r"'inception'; expected fashion-mnist"):
        make_encoder("inception", (3, 32, 32))
    with pytest.raises(JudgeError, match="120 images and 3 conditions"):
        fit(encoder, embedded(encoder, images, "cpu"), labels[:3])
    with pytest.raises(JudgeError, match=r"labels span 0\.\.10"):
        fit(encoder, embedded(encoder, images[:2], "cpu"), [0, 10])
    with pytest.raises(ClassifierError, match="expected"):
        embedded(encoder, images * 2 - 1, "cpu")
    with pytest.raises(JudgeError, match="uint8"):
        embedded(encoder, (images * 255).byte(), "cpu")


def test_a_folder_with_its_own_reference(shipped: ImageSet, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(JUDGES["fashion-mnist"][0], folder)
    assert needs_reference(str(folder)) and reference_count(str(folder), 7) == 7
    write_parquet(folder / "reference.parquet", ImageSet(shipped.images[:20], None, ()))
    assert not needs_reference(str(folder)) and reference_count(str(folder), 7) == 20
    assert load_encoder(str(folder), (1, 28, 28)).name == "fashion-mnist-b"
    assert judge_files(str(folder)) == (folder, folder / "reference.parquet")


@pytest.mark.parametrize("group", [3, 7, 1000])
def test_any_rows_of_a_reference_are_those_of_the_whole(group: int, shipped: ImageSet, tmp_path: Path) -> None:
    write_parquet(tmp_path / "whole.parquet", ImageSet(shipped.images[:150], None, ()))
    pq.write_table(pq.read_table(tmp_path / "whole.parquet"), tmp_path / "cut.parquet", row_group_size=group)
    images = ReferenceImages(tmp_path / "cut.parquet")
    assert len(images) == 150 and images.shape == (1, 28, 28)
    for start, stop in ((0, 150), (0, 1), (149, 150), (60, 70), (63, 129)):
        assert np.array_equal(images.rows(start, stop), shipped.images[start:stop])


def test_a_reference_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match="no such image set"):
        ReferenceImages(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet is not a readable Parquet file"):
        ReferenceImages(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"other\.parquet has no readable column `image`"):
        ReferenceImages(tmp_path / "other.parquet").rows(0, 1)
    with pytest.raises(DataError, match=r"text\.parquet row 0 is not an image"):
        ReferenceImages(tmp_path / "text.parquet").rows(0, 1)
