"""Files that are damaged anywhere are read, or refused by an error that names them, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import parquet, png, tar

from redif_ray.config import ConfigError
from redif_ray.data.captions import read_column
from redif_ray.data.errors import DataError
from redif_ray.data.images import load_images

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
