"""Small pictures with captions that say how they are to change, as a folder of images and as Parquet."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from redif_ray.data.pictures import PictureStore
from redif_ray.types import Edit


def drawn(seed: int, size: tuple[int, int] = (16, 24)) -> Image.Image:
    """Return a picture of random pixels, of (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def kept(store: PictureStore, captions: list[str], size: tuple[int, int]) -> list[Edit]:
    """Keep a picture for each caption; return the edits."""
    return [Edit(c, store.keep(png(drawn(i, size)), "a picture", size)) for i, c in enumerate(captions)]


def write_edits(folder: Path, number: int = 30) -> Path:
    """Write a folder of pictures, each with two captions."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(number):
        drawn(i, (20, 24)).save(folder / f"{i:03d}.png")
        rows += [{"file_name": f"{i:03d}.png", "caption": f"make it {word}"} for word in ("night", f"number {i}")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_table(path: Path, number: int = 6) -> Path:
    """Write Parquet as the datasets library does, with the picture after the change, which is not read."""
    before = [{"bytes": png(drawn(i)), "path": None} for i in range(number)]
    after = [{"bytes": png(drawn(100 + i)), "path": None} for i in range(number)]
    captions = [f"make it number {i}" for i in range(number)]
    pq.write_table(pa.table({"input_image": before, "edit_prompt": captions, "edited_image": after}), path)
    return path
