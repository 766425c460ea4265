"""Image sets for the training of teachers and the evaluation.

`load_images` reads four layouts: IDX files (the MNIST family), a folder of images (class = folder name), Parquet, npz.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from redif_ray.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
CLASSES = b"redif.classes"  # metadata key of a Parquet file for the names of its classes

FASHION_MNIST_CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MNIST_SHA256 = {  # of the decompressed label files
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class ImageSetError(UserError, ValueError):
    """An image set that cannot be read as asked; the message names the file and what was expected."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images, with or without labels. Raises ImageSetError.

    images: uint8 [n, 1 or 3, height, width]. labels: int64 [n], or None. classes: names of the labels.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ImageSetError(
                f"images are {self.images.dtype} {self.images.shape}; expected uint8 [n, 1 or 3, height, width]"
            )
        if len(self.images) == 0:
            raise ImageSetError("the image set is empty")
        if self.labels is not None and (self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]):
            raise ImageSetError(
                f"labels are {self.labels.dtype} {self.labels.shape}; expected int64 [{len(self.images)}], one an image"
            )
        if self.labels is not None and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ImageSetError(f"labels span {self.labels.min()}..{self.labels.max()} for {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.images)


def load_images(source: str | Path, *, split: str = "train", size: int | None = None) -> ImageSet:
    """Read an image set from `source`.

    source: a folder of IDX files (`{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`), a folder with one sub-folder a
        class, a Parquet file (columns `image`: encoded bytes, or a struct with `bytes`; optional `label`), or an npz
        (arrays `images` [n, h, w], [n, h, w, c] or [n, c, h, w] uint8 and optional `labels`; never unpickled).
    split: `train` or `test`, for IDX folders that hold both.
    size: edge in pixels; other images are centre-cropped to a square and resized (box filter). None keeps the images,
        which must then have one size.

    Grey images stay grey, all others become RGB; transparency is dropped. Raises ImageSetError.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ImageSetError(f"no such image set: {path}")
    if path.is_dir():
        return _resized(_read_idx(path, split), size) if _has_idx(path) else _read_folder(path, size)
    if path.suffix == ".parquet":
        return _read_parquet(path, size)
    if path.suffix == ".npz":
        return _resized(_read_npz(path), size)
    raise ImageSetError(f"{path}: expected a folder, a .parquet or a .npz file")


def _has_idx(folder: Path) -> bool:
    return any(folder.glob("*-images-idx3-ubyte*"))


def _read_idx(folder: Path, split: str) -> ImageSet:
    if split not in ("train", "test"):
        raise ImageSetError(f"split={split!r}: expected train or test")
    prefix = "train" if split == "train" else "t10k"
    images = _idx_array(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _idx_array(folder, f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)
    names = FASHION_MNIST_CLASSES if _is_fashion_mnist(folder, prefix) else _numbered(labels)
    return ImageSet(images[:, None], labels, names)


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Return names for classes without names: 0 to the largest label."""
    return tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))


def _idx_bytes(folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            data = path.read_bytes()
            try:
                return gzip.decompress(data) if path.suffix == ".gz" else data
            except (OSError, EOFError, zlib.error) as error:
                raise ImageSetError(f"{path} is not a whole gzip file: {error}") from error
    raise ImageSetError(f"{folder} has no {name} or {name}.gz")


def _is_fashion_mnist(folder: Path, prefix: str) -> bool:
    name = f"{prefix}-labels-idx1-ubyte"
    return hashlib.sha256(_idx_bytes(folder, name)).hexdigest() == FASHION_MNIST_SHA256[name]


def _idx_array(folder: Path, name: str, ndim: int) -> np.ndarray:
    """Read IDX: two zero bytes, 0x08 for uint8, the number of dimensions, each as big-endian uint32, then the data."""
    raw, start = _idx_bytes(folder, name), 4 + 4 * ndim
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, ndim]):
        raise ImageSetError(f"{folder / name} is not an IDX file of unsigned bytes in {ndim} dimensions")
    dims = tuple(np.frombuffer(raw, ">u4", ndim, 4).tolist())
    if len(raw) - start != int(np.prod(dims)):
        raise ImageSetError(f"{folder / name} holds {len(raw) - start} bytes, its header says {dims}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(dims)


def _decode(data: bytes, size: int | None, where: str) -> np.ndarray:
    """Return the image as uint8 [1 or 3, height, width]. where: the image's name in errors."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode.startswith("I;16"):  # Pillow would clip sixteen bits, not scale them
                image = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
            else:
                image = opened.convert("L" if opened.mode in ("L", "LA", "1") else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ImageSetError(f"{where} is not an image that can be read: {error}") from error
    return _array(image if size is None else _square(image, size))


def _square(image: Image.Image, size: int) -> Image.Image:
    """Return the largest central square, resized to an edge of `size` pixels."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + edge, top + edge))


def picture(array: np.ndarray) -> Image.Image:
    """Return uint8 [1 or 3, height, width] as a Pillow image."""
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _resized(images: ImageSet, size: int | None) -> ImageSet:
    if size is None or images.images.shape[2:] == (size, size):
        return images
    pixels = np.stack([_array(_square(picture(image), size)) for image in images.images])
    return ImageSet(pixels, images.labels, images.classes)


def _stack(images: list[np.ndarray], source: Path) -> np.ndarray:
    shapes = sorted({image.shape for image in images})
    if not shapes:
        raise ImageSetError(f"{source} holds no images")
    if len(shapes) > 1:
        raise ImageSetError(
            f"{source}: images differ in shape ({shapes[0]}, {shapes[1]}, ...); pass a size, or convert them"
        )
    return np.stack(images)


def _read_folder(folder: Path, size: int | None) -> ImageSet:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise ImageSetError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no IDX files")
    images = _stack([_decode(p.read_bytes(), size, str(p)) for p in files], folder)
    names = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in files]
    classes = tuple(sorted(set(names)))
    if classes == ("",):
        return ImageSet(images, None, ())
    if "" in classes:
        raise ImageSetError(f"{folder}: some images lie beside the class folders; move them into one")
    return ImageSet(images, np.array([classes.index(n) for n in names], np.int64), classes)


def _read_parquet(path: Path, size: int | None) -> ImageSet:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ImageSetError(f"{path} is not a readable Parquet file: {error}") from error
    if "image" not in table.column_names:
        raise ImageSetError(f"{path} has columns {table.column_names}; expected `image` (encoded bytes) and `label`")
    images = decoded_cells(table["image"].to_pylist(), path, size=size)
    if "label" not in table.column_names:
        return ImageSet(images, None, ())
    values = table["label"].to_pylist()
    if all(type(v) is int for v in values):
        labels, names = np.array(values, np.int64), (table.schema.metadata or {}).get(CLASSES)
        return ImageSet(images, labels, tuple(json.loads(names)) if names else _numbered(labels))
    if not all(isinstance(v, str) for v in values):
        kind = table.schema.field("label").type
        raise ImageSetError(f"{path}: column label is {kind}, or has gaps; expected integers or text in every row")
    classes = tuple(sorted(set(values)))
    return ImageSet(images, np.array([classes.index(v) for v in values], np.int64), classes)


def decoded_cells(cells: Sequence[Any], path: Path, first: int = 0, size: int | None = None) -> np.ndarray:
    """Return cells of the column `image` of a Parquet file as uint8 [n, 1 or 3, height, width]. Raises ImageSetError.

    first: row of the first cell, for errors. size: edge to which images are cropped and resized; None: as they are.
    """
    encoded = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    return _stack([_decode(cell, size, f"{path} row {i}") for i, cell in enumerate(encoded, first)], path)


def _read_npz(path: Path) -> ImageSet:
    try:
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as archive:
            arrays = {name: a for name in archive.files if isinstance(a := archive[name], np.ndarray)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageSetError(f"{path} is not a plain npz (object arrays are never unpickled): {error}") from error
    if "images" not in arrays:
        raise ImageSetError(f"{path} holds the arrays {sorted(arrays)}; expected `images` and optionally `labels`")
    images = arrays["images"]
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if "labels" not in arrays:
        return ImageSet(np.ascontiguousarray(images), None, ())
    if not np.issubdtype(arrays["labels"].dtype, np.integer):
        raise ImageSetError(f"{path}: labels are {arrays['labels'].dtype}; expected integers")
    labels = arrays["labels"].astype(np.int64)
    return ImageSet(np.ascontiguousarray(images), labels, _numbered(labels))
