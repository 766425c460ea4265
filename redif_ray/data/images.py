"""Image sets for the training of teachers and judges and for the evaluation: `load_images` reads every layout.

The layouts are IDX files (the MNIST family), npz, a folder of images (class = folder name, or a metadata table as in
Hugging Face's ImageFolder), Parquet files and tar shards (WebDataset).
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from redif_ray.data.arrays import has_idx, read_idx, read_npz
from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.labels import class_indices
from redif_ray.data.layouts.rows import Row, Wanted, encoded
from redif_ray.data.layouts.source import read_source
from redif_ray.data.layouts.tables import CLASSES
from redif_ray.data.memory import check_memory
from redif_ray.data.pixels import WHITE, array, colour, decode, picture, square, stack
from redif_ray.errors import brief, listed
from redif_ray.files import atomic_file

CHECK_BYTES = 2**26  # of images between two looks at the memory
NAMED = 5  # files that cannot be read which an error names


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images, with or without labels. Raises DataError.

    images: uint8 [n, 1 or 3, height, width]. labels: int64 [n], or None. classes: names of the labels. findings: what
    was met when they were read.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    findings: Findings = field(default_factory=Findings, compare=False)

    def __post_init__(self) -> None:
        if (problem := self._problem()) is not None:
            raise DataError(f"{self.findings.source}: {problem}" if self.findings.source else problem)

    def _problem(self) -> str | None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            return f"images are {images.dtype} {images.shape}; expected uint8 [n, 1 or 3, height, width]"
        if images.size == 0:
            return "the image set is empty"
        if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
            return f"labels are {labels.dtype} {labels.shape}; expected int64 [{len(images)}], one an image"
        if labels is not None and not 0 <= labels.min() <= labels.max() < len(self.classes):
            return f"labels span {labels.min()}..{labels.max()} for {len(self.classes)} classes"
        return None

    def __len__(self) -> int:
        return len(self.images)

    def with_classes(self, classes: tuple[str, ...]) -> ImageSet:
        """Return these images with labels among the classes of another set. Raises DataError for an unknown class."""
        if self.labels is None or self.classes == classes:
            return self
        index = {name: i for i, name in enumerate(classes)}
        unknown = sorted({self.classes[label] for label in np.unique(self.labels)} - set(classes))
        if unknown:
            raise DataError(f"{self.findings.source}: the class {brief(unknown[0])} is not among {listed(classes)}")
        places = np.array([index.get(name, -1) for name in self.classes], np.int64)
        return ImageSet(self.images, places[self.labels], classes, self.findings)

    def rows(self, rows: np.ndarray) -> ImageSet:
        """Return the images of some rows."""
        labels = None if self.labels is None else self.labels[rows]
        return ImageSet(self.images[rows], labels, self.classes, self.findings)

    def summary(self) -> Iterator[str]:
        """Yield the lines that say what was found by class, what was changed, and what was left out and why."""
        counts = [] if self.labels is None else np.bincount(self.labels, minlength=len(self.classes)).tolist()
        yield from self.findings.lines(len(self), Counter(dict(zip(self.classes, counts, strict=True))))
        _, channels, height, width = self.images.shape
        made = (
            "" if self.findings.sizes.keys() <= {(width, height)} else ", cut to the square in their middle and resized"
        )
        yield f"  used as: {width} x {height} pixels, {'grey' if channels == 1 else 'RGB'}{made}"


def load_images(
    source: str | Path,
    *,
    split: str = "train",
    size: int | None = None,
    background: str = WHITE,
    label: str | None = None,
) -> ImageSet:
    """Read an image set from `source`.

    source: a folder of IDX files (`{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`), a folder of images in class
        folders or with metadata tables, Parquet files or a folder of them, tar shards, or an npz (arrays `images`
        [n, h, w], [n, h, w, c] or [n, c, h, w] uint8 and optional `labels`; never unpickled).
    split: `train`, `validation` or `test`, for sources that have splits; others are read whole.
    size: edge in pixels; other images are centre-cropped to a square and resized (box filter). None keeps the images,
        which must then have one size.
    background: colour behind what is transparent.
    label: name of the labels' column or array, `none` to go without; None looks for a usual name.

    Grey images stay grey if all are; otherwise all become RGB. See `redif_ray.data.pixels` for what a pixel is. Raises
    DataError.
    """
    colour(background)
    path, findings = Path(source).expanduser(), Findings(str(source))
    if not path.exists():
        raise DataError(f"no such image set: {path}")
    if path.is_dir() and has_idx(path):
        return _resized(ImageSet(*read_idx(path, split, label, findings), findings), size)
    if path.suffix == ".npz":
        return _resized(ImageSet(*read_npz(path, label, findings), findings), size)
    layout = read_source(path, Wanted("images", split, label), findings)
    images, labels = _decoded(layout.rows, str(path), size, background, findings)
    pixels = stack(images, path)
    if findings.labels is None:
        return ImageSet(pixels, None, (), findings)
    told = f"{path}: {findings.labels}"
    return ImageSet(pixels, *class_indices(labels, layout.classes, told, layout.label_type), findings)


def _decoded(
    rows: Any, source: str, size: int | None, background: str, findings: Findings
) -> tuple[list[np.ndarray], list[Any]]:
    """Return (pixels, labels) of rows. Raises one DataError for all images that cannot be read."""
    images: list[np.ndarray] = []
    labels: list[Any] = []
    broken: list[str] = []
    held = checked = 0
    check_memory(3 * (size or 0) ** 2, f"size={size}")
    for row in rows:
        try:
            image = _pixels(row, size, background, findings)
        except (DataError, OSError) as error:
            broken.append(str(error))
            continue
        images.append(image)
        labels.append(row.label)
        held += image.nbytes
        if held - checked > CHECK_BYTES:
            check_memory(held, source)
            checked = held
    check_memory(held, source)
    if broken:
        more = f" (and {len(broken) - 1:,} more images: {'; '.join(broken[1:NAMED])})" if len(broken) > 1 else ""
        raise DataError(f"{broken[0]}{more}; mend or remove {'them' if more else 'it'}")
    return images, labels


def _pixels(row: Row, size: int | None, background: str, findings: Findings) -> np.ndarray:
    assert row.image is not None
    image = decode(row.image(), row.where, background, findings)
    return array(image if size is None else square(image, size))


def _resized(images: ImageSet, size: int | None) -> ImageSet:
    height, width = images.images.shape[2:]
    images.findings.sizes[width, height] += len(images)
    if size is None or (height, width) == (size, size):
        return images
    pixels = np.stack([array(square(picture(image), size)) for image in images.images])
    return ImageSet(pixels, images.labels, images.classes, images.findings)


def decoded_cells(cells: Sequence[Any], path: Path, first: int = 0, channels: int | None = None) -> np.ndarray:
    """Return cells of the column `image` of a Parquet file as uint8 [n, 1 or 3, height, width]. Raises DataError.

    first: row of the first cell, for errors. channels: 3 makes grey images RGB; None: as they are.
    """
    names = [f"{path} row {i}" for i in range(first, first + len(cells))]
    images = [decode(encoded(cell, name), name) for cell, name in zip(cells, names, strict=True)]
    return stack([array(image.convert("RGB") if channels == 3 else image) for image in images], path)


def write_parquet(path: str | Path, images: ImageSet) -> None:
    """Write `images` as PNG bytes with integer labels, zstd-compressed, which `load_images` reads back unchanged."""
    columns: dict[str, pa.Array] = {"image": pa.array([_png(image) for image in images.images], pa.binary())}
    if images.labels is not None:
        columns["label"] = pa.array(images.labels, pa.int64())
    table = pa.table(columns).replace_schema_metadata({CLASSES: json.dumps(images.classes)})
    with atomic_file(Path(path)) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=500)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    picture(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
