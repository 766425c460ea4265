"""Labels as people write them, numbers or texts, as class indices with names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from redif_ray.data.errors import DataError

MOST_CLASSES = 100_000


def class_indices(
    labels: Sequence[Any], names: tuple[str, ...] | None, where: str, kind: str | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (labels as int64 [n], names of the classes). Raises DataError.

    names: of the labels 0, 1, ...; None: the numbers themselves. where: the labels' source in errors, such as
    "x.parquet: column label". kind: their type in errors. Texts are numbered in alphabetical order or, where all are
    whole numbers, by their size.
    """
    if all(type(label) is int for label in labels):
        check_range(labels, where)
        return np.array(labels, np.int64), names or numbered(labels)
    odd = [label for label in labels if isinstance(label, bool) or not isinstance(label, int | str)]
    if odd:
        raise DataError(
            f"{where} is {kind or type(odd[0]).__name__}, or has gaps; expected integers or text in every row"
        )
    texts = [unicodedata.normalize("NFC", str(label)).strip() for label in labels]
    if "" in texts:
        raise DataError(f"{where} is an empty text in row {texts.index('')}; expected a class in every row")
    different = set(texts)
    if len(different) > MOST_CLASSES:
        raise DataError(f"{where} has {len(different):,} different texts; expected {MOST_CLASSES:,} classes at most")
    numbers = all(text.isascii() and text.isdigit() and len(text) < 10 for text in different)
    classes = tuple(sorted(different, key=lambda text: (int(text) if numbers else 0, text)))
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[text] for text in texts], np.int64), classes


def check_range(labels: Sequence[int], where: str) -> None:
    """Raise DataError for labels that are no class indices."""
    low, high = min(labels, default=0), max(labels, default=0)
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"{where}: labels span {low}..{high}; expected class numbers from 0 to {MOST_CLASSES - 1:,}, or texts"
        )


def numbered(labels: Iterable[int]) -> tuple[str, ...]:
    """Return names for classes without names: 0 to the largest label."""
    return tuple(str(i) for i in range(int(max(labels, default=-1)) + 1))
