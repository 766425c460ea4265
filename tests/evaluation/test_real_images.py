"""What the judge's own images get from the judge, beside which a teacher is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redif_ray.data.images import ImageSet
from redif_ray.evaluation.encoders import Encoder, knows
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.judge_source import JUDGES
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.types import Reference


def test_the_shipped_reference_has_labels(shipped: ImageSet, encoder: Encoder) -> None:
    assert shipped.labels is not None
    labels = ReferenceImages(JUDGES["fashion-mnist"][1]).labels(250, 500)
    assert labels == shipped.labels[250:500].tolist() and knows(encoder, labels)


@pytest.mark.parametrize(
    "column", [None, ["a", "b", "c"], [0, None, 1]], ids=["no column", "names", "an image without one"]
)
def test_labels_that_are_no_classes_are_left_alone(column: list[object] | None, tmp_path: Path) -> None:
    table = pa.table({"image": [b"", b"", b""]} | ({} if column is None else {"label": column}))
    pq.write_table(table, tmp_path / "reference.parquet")
    assert ReferenceImages(tmp_path / "reference.parquet").labels(0, 3) == []


def test_labels_of_another_data_set_are_not_taken_for_classes(encoder: Encoder) -> None:
    assert not knows(encoder, []) and not knows(encoder, [3, 10]) and not knows(encoder, [-1])


def test_the_accuracy_on_real_images_is_that_of_all_of_them() -> None:
    def part(*right: float) -> Reference:
        fit = {"class_accuracy": np.array(right)} if right else {}
        return Reference("judge", np.zeros((max(1, len(right)), 2), np.float32), fit)

    assert Judge.of([part(1.0, 0.0, 1.0), part(1.0)]).fit == {"class_accuracy": 0.75}
    assert Judge.of([part(1.0), part()]).fit == {}
