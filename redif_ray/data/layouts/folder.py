"""A folder: images in class folders or with metadata tables, captions beside images, or shards and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from re import split as split_text

from PIL import Image, UnidentifiedImageError

from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns, metadata, shards, tables
from redif_ray.data.layouts.files import File, text_of
from redif_ray.data.layouts.rows import Layout, Row, Wanted, split_named, values
from redif_ray.data.layouts.table_rows import read_tables
from redif_ray.data.pixels import CERTAIN, opened, suffixes
from redif_ray.data.walk import visible_files

CAPTIONS = (".txt", ".caption")  # of one image, beside it


def read_folder(folder: Path, wanted: Wanted, findings: Findings, table: Path | None = None) -> Layout:
    """Return the rows of a folder. Raises DataError if it holds nothing that is wanted.

    table: the table that names the images; None: those named `metadata`.
    """
    files = visible_files(folder, findings)
    images = [path for path in files if _is_image(path)]
    texts = _captions_beside(images, files)
    about = metadata.beside_images(files, findings) if table is None else [table]
    stored = [path for path in files if path.name.lower().endswith((*tables.SUFFIXES, *shards.SUFFIXES))]
    stored = [path for path in stored if path.name.lower() not in metadata.NAMES]
    if wanted.what == "images" and images:
        _leave_out(files, {*images, *about, *texts.values()}, folder, findings)
        return _images(folder, images, about, stored, wanted, findings)
    if wanted.what != "images" and about:
        opened = [(tables.open_table(File.of(path)), metadata.pictures(folder, images, path)) for path in about]
        return Layout(row for table, picture in opened for row in values(table, wanted, picture))
    if wanted.what == "captions" and texts:
        _leave_out(files, {*images, *texts.values()}, folder, findings)
        for path in images:
            if path not in texts:
                findings.leave_out("images without a caption beside them", str(path.relative_to(folder)))
        return Layout(
            Row(str(path), image=image.read_bytes, caption=text_of(File.of(path)).strip())
            for image, path in texts.items()
        )
    if stored:
        return _shards(folder, files, stored, wanted, findings)
    if wanted.what == "images":
        raise DataError(
            f"{folder} holds no images (.png, .jpg, .webp, .tif or others that Pillow reads) and no IDX files, Parquet "
            f"or tar shards{_found(files)}"
        )
    raise DataError(
        f"{folder} is a folder without {', '.join(tables.SUFFIXES)} or .tar files, or a .txt beside each image"
        f"{_found(files)}; of a list of captions, give the file itself"
    )


def _is_image(path: Path) -> bool:
    """Tell by the suffix or, where that says nothing, by the first bytes whether a file is an image."""
    if path.suffix.lower() in suffixes():
        return True
    if path.suffix.lower() in (*CAPTIONS, *tables.SUFFIXES, *shards.SUFFIXES):
        return False
    try:
        with opened(path, CERTAIN):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # said when it is read
        return True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return False


def _captions_beside(images: Sequence[Path], files: Sequence[Path]) -> dict[Path, Path]:
    """Return the file of its caption for each image that has one: a text of the image's name."""
    known = {path for path in files if path.suffix.lower() in CAPTIONS}
    beside = {image: [image.with_suffix(suffix) for suffix in CAPTIONS] for image in images}
    return {image: next(p for p in paths if p in known) for image, paths in beside.items() if known & {*paths}}


def _leave_out(files: Sequence[Path], taken: set[Path], folder: Path, findings: Findings) -> None:
    for path in files:
        if path not in taken:
            findings.leave_out(f"files {path.suffix.lower() or 'without a suffix'}", str(path.relative_to(folder)))


def _found(files: Sequence[Path]) -> str:
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files)
    return f"; found {', '.join(f'{n:,} of {kind}' for kind, n in kinds.most_common(5))}" if kinds else ""


def _images(
    folder: Path,
    images: Sequence[Path],
    about: Sequence[Path],
    stored: Sequence[Path],
    wanted: Wanted,
    findings: Findings,
) -> Layout:
    """Return the rows of a folder of images. about: the tables that name them. stored: other tables."""
    if not about and wanted.column not in (None, columns.NO_LABELS):
        raise DataError(
            f"the labels of this folder are the names of its folders; leave label={wanted.column} out, set label=none, "
            "or give it a metadata.csv"
        )
    root, chosen = _split_folder(folder, images, wanted.split, findings)
    findings.kind = "a folder of images"
    if about:
        rows, names = metadata.labelled(folder, images, set(chosen), about, wanted, findings)
        if findings.labels is not None or wanted.column is not None:
            return Layout((Row(str(path), path.read_bytes, label) for path, label in rows), names)
        chosen = [path for path, _ in rows]
    classes = _class_folders(root, chosen, wanted, single=not about)
    if not about and wanted.column is None and len(set(classes or ())) < 2:
        metadata.refuse_unread_labels(stored)
    if classes is None:
        return Layout(Row(str(path), path.read_bytes) for path in chosen)
    findings.labels = f"names of the folders in {root}"
    return Layout(Row(str(path), path.read_bytes, name) for path, name in zip(chosen, classes, strict=True))


def _class_folders(root: Path, images: Sequence[Path], wanted: Wanted, *, single: bool) -> list[str] | None:
    """Return the name of each image's class folder; None if there are none. single: whether one folder is a class."""
    if wanted.column == columns.NO_LABELS:
        return None
    names = [path.relative_to(root).parts[0] if path.parent != root else "" for path in images]
    found = set(names)
    if found == {""} or (len(found) == 1 and not single):
        return None
    if "" in found:
        raise DataError(f"{root}: some images lie beside the class folders; move them into one, or set label=none")
    for name in found:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{root}: the name of the class folder {name!a} is not UTF-8; rename it")
    return names


def _split_folder(
    folder: Path, images: Sequence[Path], split: str | None, findings: Findings
) -> tuple[Path, list[Path]]:
    """Return the folder that holds the class folders of a split, and the images in it.

    A folder that holds one folder of folders, as archives often do, stands for the inner one.
    """
    root = folder
    while len(inner := {path.relative_to(root).parts[:-1][:1] for path in images}) == 1 and () not in inner:
        below = root / next(iter(inner))[0]
        if split_named(below.name) or any(path.parent == below for path in images):
            break
        root = below
    tops = {parts[0]: split_named(parts[0]) for path in images if len(parts := path.relative_to(root).parts) > 1}
    flat = any(path.parent == root for path in images)
    named = {name for name in tops.values() if name is not None}
    if flat or not (named and (None not in tops.values() or len(named) > 1)):
        return root, list(images)
    findings.splits = tuple(sorted(named))
    wanted = [name for name, found in tops.items() if found == (split or "train")]
    if not wanted:
        raise DataError(
            f"{root} has the splits {', '.join(sorted(named))} and none named {split}; name the folder of one"
        )
    if len(wanted) > 1:
        raise DataError(f"{root} has the folders {' and '.join(sorted(wanted))} for one split; rename one")
    for path in images:
        top = path.relative_to(root).parts[0]
        if tops[top] is None:
            findings.leave_out("images outside of the splits' folders", str(path.relative_to(root)))
    inside = root / wanted[0]
    return inside, [path for path in images if inside in path.parents]


def _shards(folder: Path, files: Sequence[Path], stored: Sequence[Path], wanted: Wanted, findings: Findings) -> Layout:
    """Return the rows of the shards or tables in a folder, whose names may tell their splits."""
    kinds = [".parquet", *shards.SUFFIXES, *tables.SUFFIXES]
    kind = next(kind for kind in kinds if any(path.name.lower().endswith(kind) for path in stored))
    chosen = [path for path in stored if path.name.lower().endswith(kind)]
    splits = {path: _split_in(path.relative_to(folder)) for path in chosen}
    _leave_out(files, set(splits), folder, findings)
    found = {name for name in splits.values() if name is not None}
    if wanted.split is not None and found:
        findings.splits = tuple(sorted(found))
        for path in [path for path in chosen if splits[path] is None]:
            findings.leave_out("files that name no split", str(path.relative_to(folder)))
        chosen = [path for path in chosen if splits[path] == wanted.split]
        if not chosen:
            raise DataError(f"{folder} has the splits {', '.join(sorted(found))} and none named {wanted.split}")
    opened = [File.of(path) for path in chosen]
    if shards.is_shard(chosen[0].name):
        return shards.read_shards(opened, wanted, findings)
    return read_tables(opened, wanted, findings)


def _split_in(path: Path) -> str | None:
    """Return the split that a path names, such as data/train-00000-of-00002.parquet."""
    words = [word for part in path.parts for word in split_text("[^a-zA-Z]+", part)]
    return next((split for word in words if (split := split_named(word)) is not None), None)
