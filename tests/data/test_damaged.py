"""Files that are damaged anywhere are read, or refused by an error that names them, and nothing else."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import make, parquet, png, tar

from redif_ray.config import ConfigError
from redif_ray.data.captions import read_column
from redif_ray.data.errors import DataError
from redif_ray.data.images import load_images
from redif_ray.errors import UserError

TRIALS = 60


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 1]))
    return stream.getvalue()


IMAGES = {
    "a.png": png(1),
    "a.webp": png(1, kind="WEBP"),
    "a.tif": png(1, kind="TIFF"),
    "a.parquet": parquet({"image": [png(1)] * 2, "label": [0, 1]}),
    "a.tar": tar({"1.png": png(1), "1.json": '{"label": 3}', "2.png": png(2), "2.cls": "1"}),
    "a.npz": npz(),
}
CAPTIONS = {
    "a.csv": b'id;caption\n1;"a cat"\n2;a dog\n',
    "a.jsonl": b'{"caption": "a"}\n{"caption": ["b", "c"]}\n',
    "a.parquet": parquet({"text": ["a", "b"]}),
    "a.tar": tar({"1.txt": "a", "2.json": '{"text": "b"}'}),
}


def damaged(data: bytes) -> Iterator[bytes]:
    """Half of them cut off somewhere, half with a few bytes replaced, the same ones every time."""
    rng = np.random.default_rng(len(data))
    for trial in range(TRIALS):
        if trial % 2:
            yield data[: rng.integers(len(data))]
        else:
            changed = np.frombuffer(data, np.uint8).copy()
            changed[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            yield changed.tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, for tags of damaged files
@pytest.mark.parametrize("name", IMAGES)
def test_damaged_images(name: str, tmp_path: Path) -> None:
    refused = 0
    for data in damaged(IMAGES[name]):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            load_images(tmp_path if path.suffix in (".png", ".webp", ".tif") else path)
        except DataError as error:
            assert str(path) in str(error) or str(tmp_path) in str(error)
            refused += 1
    assert refused >= TRIALS // 4


@pytest.mark.parametrize("name", CAPTIONS)
def test_damaged_captions(name: str, tmp_path: Path) -> None:
    for data in damaged(CAPTIONS[name]):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            read_column(str(path), None, str)
        except ConfigError as error:
            assert str(error).startswith(f"conditions.source={path} ")


@pytest.mark.parametrize("field", [4, 6, 8])
def test_an_archive_of_a_kind_that_zipfile_does_not_know(field: int, tmp_path: Path) -> None:
    """Its version, flags or compression, in both headers: zipfile raises NotImplementedError."""
    data = bytearray(npz())
    for start in (data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02") + 2):
        data[start + field : start + field + 2] = b"\xff\x7f"
    (tmp_path / "a.npz").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.npz is not a plain npz"):
        load_images(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.tar", "a.csv", "train-images-idx3-ubyte"])
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_what_may_never_end_is_not_read(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name} is no regular file; put a copy of the data in its place"):
        if path.suffix == ".csv":
            read_column(str(path), None, str)
        else:
            load_images(tmp_path if name.startswith("train") else path)


class Zeros:
    def read(self, size: int) -> bytes:
        return bytes(size)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress], ids=["bz2", "xz"])
def test_a_shard_is_a_tar_or_a_gzip_file(compress: Any, tmp_path: Path) -> None:
    """A kilobyte of another compressed file holds gigabytes, which would be in memory at once."""
    (tmp_path / "a.tar").write_bytes(compress(tar({"1.txt": "a cat"})))
    with pytest.raises(ConfigError, match=r"a\.tar is not a tar file that can be read"):
        read_column(str(tmp_path / "a.tar"), None, str)


def test_a_small_shard_that_holds_much_takes_little_memory(tmp_path: Path) -> None:
    path, info = tmp_path / "a.tgz", tarfile.TarInfo("1.mp4")
    info.size = 2**25
    with tarfile.open(path, "w:gz", compresslevel=1) as shard:
        shard.addfile(info, Zeros())  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"a\.tgz holds nothing"):
            read_column(str(path), None, str)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (
            {
                "a.parquet": parquet(
                    {"image": [png(1)] * 2, "label": [0, 3]}, {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
                )
            },
            "a.parquet",
            "labels span 0..3 for 2 classes",
        ),
        ({"a.tar": tar({"1.txt": "x"})}, "a.tar", "holds no images"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(files: Any, source: str, message: str, tmp_path: Path) -> None:
    path = make(tmp_path, files) / source
    with pytest.raises(DataError) as error:
        load_images(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
