"""Images that lie in arrays: IDX files (the MNIST family) and npz."""

from __future__ import annotations

import gzip
import hashlib
import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from redif_ray.data.errors import DataError, reading
from redif_ray.data.findings import Findings
from redif_ray.data.labels import check_range, numbered
from redif_ray.data.layouts.columns import NO_LABELS, label_column
from redif_ray.data.layouts.files import opened
from redif_ray.data.memory import check_memory
from redif_ray.errors import brief

Arrays = tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]  # images, labels, names of the classes
PREFIXES = {"train": "train", "test": "t10k"}  # of IDX files, by split

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


def has_idx(folder: Path) -> bool:
    return any(folder.glob("*-images?idx3-ubyte*"))


def read_idx(folder: Path, split: str, wanted: str | None, findings: Findings) -> Arrays:
    """Return the arrays of a folder's IDX files. wanted: `none` for no labels. Raises DataError."""
    if split not in PREFIXES:
        raise DataError(f"split={split!r}: expected train or test")
    prefix = PREFIXES[split]
    if wanted not in (None, NO_LABELS):
        raise DataError(f"the labels of {folder} are IDX files; leave label={wanted} out, or set label=none")
    findings.kind = "IDX files"
    findings.splits = tuple(name for name, p in PREFIXES.items() if any(folder.glob(f"{p}-images?idx3-ubyte*")))
    images = _idx_array(folder, f"{prefix}-images-idx3-ubyte", 3)
    if wanted == NO_LABELS:
        return images[:, None], None, ()
    findings.labels = f"{prefix}-labels-idx1-ubyte"
    labels = _idx_array(folder, findings.labels, 1)
    known = hashlib.sha256(_header(labels) + labels.tobytes()).hexdigest() in FASHION_MNIST_SHA256.values()
    labels = labels.astype(np.int64)
    return images[:, None], labels, FASHION_MNIST_CLASSES if known else numbered(labels.tolist())


def _header(labels: np.ndarray) -> bytes:
    return bytes([0, 0, 8, 1]) + len(labels).to_bytes(4, "big")


def _idx_array(folder: Path, name: str, ndim: int) -> np.ndarray:
    """Read IDX: two zero bytes, 0x08 for uint8, the number of dimensions, each as big-endian uint32, then the data."""
    spellings = (name, name.replace("-idx", ".idx"))  # both are in use
    path = next((p for n in spellings for p in (folder / n, folder / f"{n}.gz") if p.exists()), None)
    if path is None:
        raise DataError(f"{folder} has no {name} or {name}.gz")
    zipped = path.suffix == ".gz"
    readable = reading(path, "a whole gzip file" if zipped else "a file that can be read")
    with readable, opened(path) as file, gzip.open(file) if zipped else file as stream:
        return _idx_values(stream, folder / name, ndim)


def _idx_values(stream: IO[bytes] | Any, path: Path, ndim: int) -> np.ndarray:
    header = stream.read(4 + 4 * ndim)
    if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
        stream.read(2**26)  # a damaged gzip file says so here
        raise DataError(f"{path} is not an IDX file of unsigned bytes in {ndim} dimensions")
    dims = tuple(np.frombuffer(header, ">u4", ndim, 4).tolist())
    expected = math.prod(dims)
    check_memory(expected, str(path))
    data = stream.read(expected + 1)
    if len(data) != expected:
        more = " or more" if len(data) > expected else ""
        raise DataError(f"{path} holds {len(data)} bytes{more}, its header says {dims}")
    return np.frombuffer(data, np.uint8).reshape(dims)


def read_npz(path: Path, wanted: str | None, findings: Findings) -> Arrays:
    """Return the arrays of an npz; object arrays are never unpickled. wanted: name of the labels. Raises DataError."""
    findings.kind = "an npz"
    plain = reading(path, "a plain npz (object arrays are never unpickled)")
    with plain, opened(path) as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as archive:
        return _npz_arrays(archive, path, wanted, findings)


def _npz_arrays(archive: Any, path: Path, wanted: str | None, findings: Findings) -> Arrays:
    check_memory(sum(entry.file_size for entry in archive.zip.infolist()), str(path))
    if "images" not in archive.files:
        raise DataError(
            f"{path} holds the arrays {brief(sorted(archive.files))}; expected `images` and optionally `labels`"
        )
    others = [name for name in archive.files if name != "images"]
    named = label_column(others, {}, wanted, str(path))
    images = _array(archive, "images", path)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    images = np.ascontiguousarray(images)
    if named is None:
        return images, None, ()
    labels = _array(archive, named, path)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: {named} are {labels.dtype}; expected integers")
    findings.labels = f"array {named}"
    check_range([int(labels.min()), int(labels.max())] if labels.size else [], str(path))
    return images, labels.astype(np.int64), numbered(labels.ravel().tolist())


def _array(archive: Any, name: str, path: Path) -> np.ndarray:
    value = archive[name]
    if not isinstance(value, np.ndarray):
        raise DataError(f"{path} is not a plain npz: {name} is no array")
    return value
