from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from redif_ray.data.errors import DataError
from redif_ray.data.images import ImageSet, load_images, write_parquet
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream

PUBLISHED = Path("/usr/share/datasets/fashion-mnist")


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return noise.bits(int(np.prod(shape)), Stream.CALIBRATION, seed=seed).astype(np.uint8).reshape(shape)


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """The format as its author describes it: magic, sizes, data, all big-endian."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, zipped: bool = False) -> None:
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        data = idx(array)
        (folder / f"{name}{'.gz' if zipped else ''}").write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(zipped: bool, tmp_path: Path) -> None:
    train, test = pixels(5, 4, 6), pixels(3, 4, 6, seed=1)
    write_idx(tmp_path, "train", train, np.array([0, 2, 1, 2, 0], np.uint8), zipped)
    write_idx(tmp_path, "t10k", test, np.array([1, 1, 3], np.uint8), zipped)
    found = load_images(tmp_path)
    assert found.images.shape == (5, 1, 4, 6) and np.array_equal(found.images[:, 0], train)
    assert found.labels is not None and found.labels.tolist() == [0, 2, 1, 2, 0] and found.labels.dtype == np.int64
    assert found.classes == ("0", "1", "2")
    other = load_images(str(tmp_path), split="test")
    assert np.array_equal(other.images[:, 0], test) and len(other.classes) == 4 and len(other) == 3
    assert load_images(tmp_path, label="none").labels is None
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert np.array_equal(load_images(tmp_path).images, found.images)
    with pytest.raises(DataError, match=r"split='valid': expected train or test"):
        load_images(tmp_path, split="valid")


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lambda d: d[:-1], r"holds 95 bytes, its header says \(4, 4, 6\)"),
        (lambda d: d + b"x", r"holds 97 bytes"),
        (lambda d: d[:9], "not an IDX file of unsigned bytes in 3 dimensions"),
        (lambda d: b"", "not an IDX file"),
        (lambda d: b"\0\0\x0d" + d[3:], "not an IDX file of unsigned bytes"),  # floats
        (lambda d: b"\0\0\x08\x01" + d[4:], "in 3 dimensions"),
    ],
)
def test_a_damaged_idx_file_is_named(damage: Callable[[bytes], bytes], pattern: str, tmp_path: Path) -> None:
    write_idx(tmp_path, "train", pixels(4, 4, 6), np.zeros(4, np.uint8))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{path}.*{pattern}"):
        load_images(tmp_path)


def test_an_idx_folder_that_is_not_whole(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", pixels(4, 4, 6), np.zeros(3, np.uint8))
    with pytest.raises(DataError, match=r"labels are int64 \(3,\); expected int64 \[4\]"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="has no t10k-images-idx3-ubyte or t10k"):
        load_images(tmp_path, split="test")
    write_idx(tmp_path, "train", pixels(0, 4, 6), np.zeros(0, np.uint8))
    with pytest.raises(DataError, match="empty"):
        load_images(tmp_path)


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"no gzip", lambda d: d[:12] + b"\xff" * 9 + d[21:]])
def test_a_damaged_gzip_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_idx(tmp_path, "train", pixels(4, 4, 6), np.zeros(4, np.uint8), zipped=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} is not a whole gzip file"):
        load_images(tmp_path)


def test_a_folder_of_classes(tmp_path: Path) -> None:
    """Labels follow the class folders' alphabet, images keep their own."""
    expected = {}
    for i, name in enumerate(["dog/1.png", "cat/b.png", "cat/a.PNG", "eel/deep/x.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        expected[name] = pixels(4, 5, 3, seed=i)
        (tmp_path / name).write_bytes(encoded(expected[name]))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    found = load_images(tmp_path)
    assert found.classes == ("cat", "dog", "eel")
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1, 2]
    for image, name in zip(found.images, ["cat/a.PNG", "cat/b.png", "dog/1.png", "eel/deep/x.png"], strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), expected[name])


def test_a_folder_without_classes(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(pixels(4, 4, seed=i)))
    found = load_images(tmp_path)
    assert found.labels is None and found.classes == () and found.images.shape == (3, 1, 4, 4)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(encoded(pixels(4, 4)))
    with pytest.raises(DataError, match=f"{tmp_path}: some images lie beside the class folders"):
        load_images(tmp_path)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(pixels(4, 4)))
    (tmp_path / "b.png").write_bytes(encoded(pixels(4, 8)))
    with pytest.raises(DataError, match=rf"{tmp_path}: images differ in shape .*4, 4.*4, 8.*pass a size"):
        load_images(tmp_path)
    assert load_images(tmp_path, size=2).images.shape == (2, 1, 2, 2)


def layouts(array: np.ndarray, folder: Path) -> dict[str, Path]:
    """The same grey images [n, h, w], all of class 0, in every layout."""
    (folder / "classes" / "0").mkdir(parents=True)
    for i, image in enumerate(array):
        (folder / "classes" / "0" / f"{i}.png").write_bytes(encoded(image))
    (folder / "idx").mkdir()
    write_idx(folder / "idx", "train", array, np.zeros(len(array), np.uint8))
    pq.write_table(pa.table({"image": [encoded(i) for i in array], "label": [0] * len(array)}), folder / "x.parquet")
    np.savez(folder / "x.npz", images=array, labels=np.zeros(len(array), np.uint8))
    names = {"folder": "classes", "idx": "idx", "parquet": "x.parquet", "npz": "x.npz"}
    return {layout: folder / name for layout, name in names.items()}


@pytest.mark.parametrize("layout", ["folder", "idx", "parquet", "npz"])
def test_every_layout_is_cropped_and_averaged_alike(layout: str, tmp_path: Path) -> None:
    """Four by eight to two by two: the middle four by four, each pixel the mean of a block of four (rounded twice)."""
    array = pixels(3, 4, 8)
    found = load_images(layouts(array, tmp_path)[layout], size=2)
    blocks = array[:, :, 2:6].reshape(3, 2, 2, 2, 2).mean((2, 4))
    assert found.images.shape == (3, 1, 2, 2) and found.images.dtype == np.uint8
    assert np.abs(found.images[:, 0] - blocks).max() <= 1
    same = load_images(layouts(pixels(2, 4, 4), tmp_path / "square")[layout], size=4)
    assert np.array_equal(same.images[:, 0], pixels(2, 4, 4)) and same.classes == ("0",)


def test_colour_npz_is_resized_too(tmp_path: Path) -> None:
    array = pixels(2, 4, 4, 3)
    np.savez(tmp_path / "x.npz", images=array)
    found = load_images(tmp_path / "x.npz", size=2).images.transpose(0, 2, 3, 1)
    assert np.abs(found - array.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))).max() <= 1


@pytest.mark.parametrize(
    ("array", "mode", "expected"),
    [
        (pixels(4, 5), None, lambda a: a[None]),
        (pixels(4, 5), "LA", lambda a: a[None]),
        (pixels(4, 5) > 127, None, lambda a: a[None] * np.uint8(255)),
        (pixels(4, 5).astype(np.uint16) * 257, None, lambda a: (a[None] // 257).astype(np.uint8)),  # sixteen bits
        (pixels(4, 5, 3), None, lambda a: a.transpose(2, 0, 1)),
        (pixels(4, 5, 3), "RGBA", lambda a: a.transpose(2, 0, 1)),
        (pixels(4, 5) // 128 * np.uint8(255), "P", lambda a: np.stack([a] * 3)),
    ],
    ids=["grey", "grey+alpha", "bits", "grey16", "rgb", "rgba", "palette"],
)
def test_modes(array: np.ndarray, mode: str | None, expected: Callable[[Any], Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(array, mode=mode))
    assert np.array_equal(load_images(tmp_path).images[0], expected(array))


def test_parquet_of_bytes_and_of_structs(tmp_path: Path) -> None:
    array = pixels(3, 4, 5, 3)
    cells = [encoded(image) for image in array]
    pq.write_table(pa.table({"image": cells, "label": [2, 0, 2]}), tmp_path / "bytes.parquet")
    structs = [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)]
    pq.write_table(pa.table({"image": structs, "label": ["dog", "cat", "dog"]}), tmp_path / "struct.parquet")
    pq.write_table(pa.table({"image": cells}), tmp_path / "plain.parquet")
    numbers, words, plain = (load_images(tmp_path / f"{name}.parquet") for name in ("bytes", "struct", "plain"))
    for found in (numbers, words, plain):
        assert np.array_equal(found.images.transpose(0, 2, 3, 1), array)
    assert numbers.labels is not None and numbers.labels.tolist() == [2, 0, 2] and numbers.classes == ("0", "1", "2")
    assert words.labels is not None and words.labels.tolist() == [1, 0, 1] and words.classes == ("cat", "dog")
    assert plain.labels is None and plain.classes == ()


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        ({"x": [b""]}, r"has columns \['x'\]; expected `image`"),
        ({"image": [b"not an image"]}, "row 0 is not an image"),
        ({"image": ["a.png"]}, "row 0 is not an image"),
        ({"image": pa.array([None], pa.binary())}, "row 0 is not an image"),
        ({"image": [encoded(pixels(4, 4))[:-30]]}, "row 0 is not an image"),
        ({"image": [encoded(pixels(4, 4))], "label": pa.array([None], pa.int64())}, "label is int64, or has gaps"),
        ({"image": [encoded(pixels(4, 4))], "label": [0.5]}, "column label is double"),
        ({"image": [encoded(pixels(4, 4))], "label": [-1]}, r"labels span -1\.\.-1"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "holds no images"),
    ],
)
def test_a_parquet_file_that_cannot_be_used(columns: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=pattern):
        load_images(tmp_path / "x.parquet")


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=rf"{tmp_path}/x.parquet is not a readable Parquet file"):
        load_images(tmp_path / "x.parquet")


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_as_parquet_comes_back(channels: int, tmp_path: Path) -> None:
    for images in (
        ImageSet(pixels(4, channels, 5, 6), np.array([2, 0, 0, 1]), ("T-shirt", "bag", "Ankle boot", "none of these")),
        ImageSet(pixels(4, channels, 5, 6), None, ()),
    ):
        write_parquet(tmp_path / "x.parquet", images)
        found = load_images(tmp_path / "x.parquet")
        assert np.array_equal(found.images, images.images) and found.images.dtype == np.uint8
        assert np.array_equal(found.labels, images.labels) and found.classes == images.classes


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 4, 6), None), ((5, 4, 6, 3), (0, 3, 1, 2)), ((5, 4, 6, 1), (0, 3, 1, 2)), ((5, 3, 4, 6), (0, 1, 2, 3))],
)
def test_npz_layouts(shape: tuple[int, ...], axes: tuple[int, ...] | None, tmp_path: Path) -> None:
    array = pixels(*shape)
    np.savez_compressed(tmp_path / "x.npz", images=array, labels=np.array([0, 1, 0, 1, 2], np.int32))
    found = load_images(tmp_path / "x.npz")
    assert np.array_equal(found.images, array[:, None] if axes is None else array.transpose(axes))
    assert found.labels is not None and found.labels.tolist() == [0, 1, 0, 1, 2] and found.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arrays", "pattern"),
    [
        ({"x": pixels(2, 4, 4)}, r"holds the arrays \['x'\]; expected `images`"),
        ({"images": pixels(2, 4, 4).astype(np.float32)}, r"images are float32 .*expected uint8"),
        ({"images": pixels(2, 4, 4, 4)}, r"expected uint8 \[n, 1 or 3"),
        ({"images": pixels(2, 4)}, "expected uint8"),
        ({"images": pixels(2, 4, 4), "labels": np.array([0.5, 1])}, "labels are float64; expected integers"),
        ({"images": pixels(2, 4, 4), "labels": np.zeros((2, 3), int)}, r"labels are int64 \(2, 3\)"),
        ({"images": pixels(2, 4, 4), "labels": np.array([0])}, r"labels are int64 \(1,\)"),
        ({"images": pixels(2, 4, 4), "labels": np.array([0, -1])}, r"labels span -1\.\.0"),
    ],
)
def test_an_npz_that_cannot_be_used(arrays: dict[str, np.ndarray], pattern: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=pattern):
        load_images(tmp_path / "x.npz")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("layout", ["object array", "pickle in the archive", "pickle", "npy"])
def test_nothing_is_ever_unpickled(layout: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "x.npz", tmp_path / "executed"
    array = np.array([Payload(mark)], object)
    if layout == "object array":
        np.savez(path, images=array)
    elif layout == "pickle in the archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", pickle.dumps(Payload(mark)))
    elif layout == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        with path.open("wb") as stream:
            np.save(stream, array)
    with pytest.raises(DataError, match=str(path)):
        load_images(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))  # the payload is a live one
    assert mark.exists()


@pytest.mark.parametrize("keep", [0, 10, -5])
def test_a_truncated_npz_is_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=pixels(2, 4, 4))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{path} is not a plain npz"):
        load_images(path)


def test_an_altered_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=pixels(2, 4, 4))
    raw = bytearray(path.read_bytes())
    raw[raw.index(pixels(2, 4, 4).tobytes())] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=f"{path} is not a plain npz"):
        load_images(path)


@pytest.mark.parametrize("data", [b"", b"hello", encoded(pixels(8, 8, 3), "JPEG")[:-300], encoded(pixels(8, 8))[:40]])
def test_a_file_that_is_no_image_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded(pixels(8, 8)))
    (tmp_path / "odd.png").write_bytes(data)
    with pytest.raises(DataError, match=f"{tmp_path}/odd.png is not an image"):
        load_images(tmp_path)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} holds no images .*png.* and no IDX files"):
        load_images(tmp_path)
    with pytest.raises(DataError, match=f"no such image set: {tmp_path}/absent"):
        load_images(tmp_path / "absent")
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"x.zip: expected a folder, or a file that ends in .parquet.*; unpack it first"
    ):
        load_images(tmp_path / "x.zip")


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"Fashion-MNIST is not installed at {PUBLISHED}")
def test_the_published_fashion_mnist() -> None:
    test = load_images(PUBLISHED, split="test")
    assert test.images.shape == (10000, 1, 28, 28) and test.labels is not None
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[9] == "Ankle boot" and test.labels[0] == 9
