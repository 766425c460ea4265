"""Rows of image, label and caption, which every layout yields, and how a table's columns become such rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns
from redif_ray.data.layouts.tables import Table
from redif_ray.errors import brief


@dataclass(frozen=True, slots=True)
class Row:
    """One example. where: its file, or file and row. image: function that returns its encoded bytes.

    label: a number, a text, or None. caption: as the source has it, a text or a list of texts. metadata: values of the
    further columns that are wanted, by name.
    """

    where: str
    image: Callable[[], bytes] | None = None
    label: Any = None
    caption: Any = None
    metadata: Mapping[str, Any] | None = None


Picture = Callable[[Any, str], Callable[[], bytes]]  # of a cell, and of where it is


@dataclass(frozen=True, slots=True)
class Wanted:
    """A choice of what is read from a source.

    what: images with their labels where there are any, or captions alone, or labels alone. split: the part of a source
    that has splits; None: all parts. column: the column of labels or captions; None: look for one. metadata: names of
    further columns, of captions alone. pictures: whether each caption is to come with the picture that it changes.
    """

    what: Literal["images", "captions", "labels"]
    split: str | None = None
    column: str | None = None
    metadata: tuple[str, ...] = ()
    pictures: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a source.

    classes: names of the labels 0, 1, ... where the source has them. label_type: type of the labels, in words.
    """

    rows: Iterable[Row]
    classes: tuple[str, ...] | None = None
    label_type: str | None = None


def value_column(table: Table, wanted: Wanted) -> str:
    """Return the column of captions, or of labels. Raises DataError if the table has none."""
    names = columns.CAPTIONS if wanted.what == "captions" else columns.LABELS
    names = (*columns.INSTRUCTIONS, *names) if wanted.pictures else names
    found = wanted.column if wanted.column in table.columns else None
    if wanted.column is None:
        found = columns.find(table.columns, names)
    if found is None:
        expected = wanted.column or " or ".join(names[:3])
        more = "" if wanted.column else ", or conditions.column to name another"
        if wanted.what == "labels" and columns.find(table.columns, columns.CAPTIONS) is not None:
            more += "; the teacher draws classes, and these are captions"
        raise DataError(f"{table.name} has the columns {brief(list(table.columns))}; expected {expected}{more}")
    return found


def values(table: Table, wanted: Wanted, picture: Picture | None = None) -> Iterator[Row]:
    """Yield the captions, or the labels, of a table.

    picture: function of a cell that names a picture; None: cells hold the bytes of pictures.
    """
    column, held = value_column(table, wanted), [_picture_column(table, picture)] if wanted.pictures else []
    if lacking := [name for name in wanted.metadata if name not in table.columns]:
        found = brief(list(table.columns))
        raise DataError(f"{table.name} has the columns {found}; expected {lacking[0]} for metadata")
    for number, (cell, *further) in enumerate(table.read([column, *held, *wanted.metadata])):
        where = f"{table.name} row {number}"
        if wanted.pictures:
            if picture is None:
                yield Row(where, image=partial(encoded, further[0], where), caption=cell)
            else:
                yield Row(f"{where}, {further[0]}", image=picture(further[0], where), caption=cell)
        elif wanted.what == "captions":
            yield Row(where, caption=cell, metadata=dict(zip(wanted.metadata, further, strict=True)))
        else:
            yield Row(where, label=cell if table.typed else number_in(cell))


def _picture_column(table: Table, picture: Picture | None) -> str:
    held = columns.IMAGES if picture is None else columns.FILES
    found = columns.find(table.columns, (*columns.SOURCES, *held))
    if found is None:
        raise DataError(
            f"{table.name} has the columns {brief(list(table.columns))}; expected {columns.SOURCES[0]} or {held[0]}, "
            "the picture that a caption changes"
        )
    return found


def number_in(text: str) -> int | str:
    """Return the whole number that a text is; other texts as they are."""
    return int(text) if re.fullmatch(r"-?\d{1,18}", text.strip()) else text


def label_of(table: Table, image: str | None, wanted: Wanted, findings: Findings) -> str | None:
    """Return a table's column of labels and note it; None if it has none. image: the column of images."""
    others = [column for column in table.columns if column != image]
    found = columns.label_column(others, table.features, wanted.column, table.name)
    if found is not None:
        also = [column for column in others if column != found and columns.find([column], columns.LABELS)]
        findings.labels = f"column {found}" + (f" (not {', '.join(also)})" if also else "")
    return found


def classes_of(table: Table, label: str | None) -> tuple[str, ...] | None:
    """Return the names of a table's labels: those of Hugging Face's metadata, or those that this package wrote."""
    return columns.class_names(table.features.get(label or "", {})) or table.classes


def picked(
    table: Table, names: list[str | None], split: str | None, findings: Findings
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield (row number, cells) of the rows of a split; a cell is None for a column that is None."""
    present = list(dict.fromkeys(name for name in names if name is not None))
    marker = columns.find(table.columns, columns.SPLITS) if split is not None else None
    reads = present if marker is None or marker in present else [*present, marker]
    for number, cells in enumerate(table.read(reads)):
        row = dict(zip(reads, cells, strict=True))
        named = None if marker is None else split_named(str(row[marker]))
        if named is not None and named not in findings.splits:
            findings.splits = tuple(sorted({*findings.splits, named}))
        if named in (split, None):
            yield number, tuple(None if name is None else row[name] for name in names)


NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_named(name: str) -> str | None:
    """Return train, validation or test if a folder of this name holds that split."""
    return next((split for split, names in NAMES.items() if name.casefold() in names), None)


def encoded(cell: Any, where: str) -> bytes:
    """Return the bytes of an image cell: bytes, or a struct with `bytes`. Raises DataError."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes):
        return data
    path = cell.get("path") if isinstance(cell, dict) else None
    found = f"only the path {brief(path)}" if path else "text" if isinstance(cell, str) else f"{type(cell).__name__}"
    raise DataError(f"{where} is not an image that can be read: it holds {found}; expected the bytes of an image file")
