"""Columns by the names that people give them: which one holds images, labels, captions, file names and splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from redif_ray.data.errors import DataError
from redif_ray.errors import brief, listed

IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABELS = (
    *("label", "class", "class_label", "class_id", "label_id", "category", "category_id", "target"),
    *("fine_label", "coarse_label", "cls", "class_name", "label_name"),
)
CAPTIONS = ("caption", "text", "prompt", "description", "sentence", "txt")
INSTRUCTIONS = ("instruction", "edit_instruction", "edit_prompt")  # captions that say how a picture is to change
SOURCES = ("source_image", "input_image", "original_image", "source", "input", "original")  # pictures that change
FILES = ("file_name", "filename", "file_path", "filepath", "image_path", "path", "file", "image", "img")
SPLITS = ("split",)
NO_LABELS = "none"  # in place of a label column's name


def key(name: str) -> str:
    """Return what names of one meaning have in common: `Labels` and `label` are one."""
    return name.casefold().removesuffix("s")


def find(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column that the first of `names` stands for; None if no name has one."""
    known = {key(column): column for column in reversed(columns)}
    return next((known[key(name)] for name in names if key(name) in known), None)


def features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Return the features by column that Hugging Face's `datasets` writes into a Parquet file's metadata."""
    try:
        found = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def of_type(features: Mapping[str, Mapping[str, Any]], columns: Sequence[str], kind: str) -> list[str]:
    """Return the columns whose feature is of a type, such as Image or ClassLabel."""
    return [column for column in columns if features.get(column, {}).get("_type") == kind]


def class_names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel feature."""
    names = feature.get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def image_column(columns: Sequence[str], features: Mapping[str, Mapping[str, Any]], where: str) -> str | None:
    """Return the column of images, if there is one. Raises DataError for several without a usual name."""
    typed = of_type(features, columns, "Image")
    named = find(typed or columns, IMAGES)
    if named is None and len(typed) > 1:
        raise DataError(f"{where} has the image columns {brief(typed)}; rename the one that counts to image")
    return named or next(iter(typed), None)


def label_column(
    columns: Sequence[str], features: Mapping[str, Mapping[str, Any]], wanted: str | None, where: str
) -> str | None:
    """Return the column of labels; None if there is none. Raises DataError where that cannot be told.

    columns: all but those of the images. wanted: the name that the user gives, `none` for no labels, or None to look.
    """
    if wanted == NO_LABELS:
        return None
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{where} has no column label={wanted}; expected one of {listed(columns)}, or none")
        return wanted
    typed = of_type(features, columns, "ClassLabel")
    found = find(columns, LABELS) or (typed[0] if len(typed) == 1 else None)
    known = {key(name) for name in (*CAPTIONS, *FILES, *SPLITS)}
    others = [column for column in columns if key(column) not in known and not column.startswith("__")]
    if found is None and others:
        raise DataError(
            f"{where} has the columns {listed(others)}, and which one holds labels is not known; set label=NAME, or "
            "label=none to go without labels"
        )
    return found
