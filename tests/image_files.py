"""Parquet files of images, as `redif_ray.data.images` reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from redif_ray.data.images import CLASSES, ImageSet, picture


def write_parquet(path: str | Path, images: ImageSet) -> None:
    """Write `images` as PNG bytes with integer labels, zstd-compressed, which `load_images` reads back unchanged."""

    def png(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        picture(image).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    columns: dict[str, pa.Array] = {"image": pa.array([png(image) for image in images.images], pa.binary())}
    if images.labels is not None:
        columns["label"] = pa.array(images.labels, pa.int64())
    table = pa.table(columns).replace_schema_metadata({CLASSES: json.dumps(images.classes)})
    pq.write_table(table, path, compression="zstd")
