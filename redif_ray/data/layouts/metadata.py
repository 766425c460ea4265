"""Metadata tables beside images, as in Hugging Face's ImageFolder: a row names an image's file, and its label."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns, tables
from redif_ray.data.layouts.files import File
from redif_ray.data.layouts.rows import Picture, Wanted, classes_of, label_of, number_in, picked
from redif_ray.errors import brief, listed

NAMES = [f"metadata{suffix}" for suffix in tables.SUFFIXES]


def beside_images(files: Sequence[Path], findings: Findings) -> list[Path]:
    """Return the metadata table of each folder that has one; of several in a folder, the first by `NAMES`."""
    found: dict[Path, Path] = {}
    for path in sorted((p for p in files if p.name.lower() in NAMES), key=lambda p: NAMES.index(p.name.lower())):
        if found.setdefault(path.parent, path) != path:
            findings.leave_out(f"metadata beside {found[path.parent].name}", str(path))
    return sorted(found.values())


def labelled(
    folder: Path, images: Sequence[Path], chosen: set[Path], about: Sequence[Path], wanted: Wanted, findings: Findings
) -> tuple[list[tuple[Path, Any]], tuple[str, ...] | None]:
    """Return (image, label) of each row of the tables whose image is of the chosen ones, and the classes' names.

    images: all below `folder`. Raises DataError for a table without file names, and for a row without its image.
    """
    find = _Finder(folder, images)
    rows: list[tuple[Path, Any]] = []
    named: set[Path] = set()
    names: tuple[str, ...] | None = None
    for path in about:
        table = tables.open_table(File.of(path))
        file = columns.find(table.columns, columns.FILES)
        if file is None:
            raise DataError(f"{path} has the columns {listed(table.columns)}; expected file_name")
        label = label_of(table, file, wanted, findings)
        names = classes_of(table, label) or names
        for number, (name, value) in picked(table, [file, label], wanted.split, findings):
            image = find(path.parent, str(name))
            if image is None:
                raise DataError(f"{path} row {number} names {brief(name)}, which is no image in {folder}")
            named.add(image)
            if image in chosen:
                rows.append((image, value if table.typed or value is None else number_in(value)))
    for image in sorted(chosen - named):
        findings.leave_out("images that no metadata names", str(image.relative_to(folder)))
    return rows, names


def pictures(folder: Path, images: Sequence[Path], table: Path) -> Picture:
    """Return the function from a cell of `table` to the picture that it names. images: all below `folder`."""
    find = _Finder(folder, images)

    def picture(cell: Any, where: str) -> Callable[[], bytes]:
        if (path := find(table.parent, str(cell))) is None:
            raise DataError(f"{where} names {brief(cell)}, which is no image in {folder}")
        return path.read_bytes

    return picture


class _Finder:
    """A function from a table's folder and a name in it to the image, which must be one of those below `folder`.

    A name alone also stands for the one image of that name in any folder.
    """

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self.folder = folder
        self.paths = {_plain(path.relative_to(folder).as_posix()): path for path in images}
        self.alone: dict[str, Path | None] = {}
        for path in images:
            name = _plain(path.name)
            self.alone[name] = None if name in self.alone else path

    def __call__(self, beside: Path, name: str) -> Path | None:
        plain = _plain(name.strip().replace("\\", "/"))
        inside = PurePosixPath(beside.relative_to(self.folder).as_posix(), plain)
        return self.paths.get(str(inside)) or self.alone.get(plain)


def _plain(name: str) -> str:
    """Return a name as all systems spell it; macOS takes accents apart."""
    return unicodedata.normalize("NFC", name)


def refuse_unread_labels(stored: Sequence[Path]) -> None:
    """Raise DataError if a table that is not read has file names and labels, of images that have no other labels."""
    for path in stored:
        if path.suffix.lower() not in tables.SUFFIXES:
            continue
        try:
            found = tables.open_table(File.of(path)).columns
        except DataError:  # no table of these images
            continue
        if columns.find(found, columns.FILES) and columns.find(found, columns.LABELS):
            raise DataError(
                f"{path} has file names and labels ({listed(found)}), and is not read; set data={path} to read it, "
                "or label=none to go without labels"
            )
