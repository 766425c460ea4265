"""The reference images of a judge that has its own: a Parquet file, read a few rows at a time.

The file may be larger than memory: its rows are read where they are embedded, by the reward workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from redif_ray.data.errors import DataError
from redif_ray.data.images import decoded_cells
from redif_ray.evaluation.judge_source import judge_files, needs_reference
from redif_ray.types import Condition


def reference_count(source: str, count: int) -> int:
    """Return the number of a judge's own reference images, or `count` for a judge that has none."""
    return count if needs_reference(source) else len(ReferenceImages(judge_files(source)[1]))


LABEL = "label"


class ReferenceImages:
    """The images of the column `image` (encoded bytes, or a struct with `bytes`). Raises DataError.

    channels: 3 reads grey images as RGB, and what is transparent is laid on white; None: as they are.
    """

    def __init__(self, path: Path, channels: int | None = None) -> None:
        self.path, self.channels = path, channels
        if not path.is_file():
            raise DataError(f"no such image set: {path}")
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error
        self.sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if not len(self):
            raise DataError(f"{path} holds no images")

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of the first image."""
        return self.rows(0, 1).shape[1:]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the images `start` to `stop`, uint8 [stop - start, C, H, W]."""
        return np.concatenate(list(self.batches(start, stop, stop - start)))

    def labels(self, start: int, stop: int) -> list[Condition]:
        """Return the classes of the images `start` to `stop`; none where the file has no whole numbers as labels."""
        with pq.ParquetFile(self.path) as file:
            kind = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)).get(LABEL)
            if kind is None or not pa.types.is_integer(kind):
                return []
            column = file.read(columns=[LABEL])[LABEL].slice(start, stop - start)
        return [] if column.null_count else list(column.to_pylist())

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Yield the images `start` to `stop`, uint8 [at most `size`, C, H, W], reading only their row groups."""
        ends = np.cumsum(self.sizes)
        groups = [i for i, end in enumerate(ends) if end > start and end - self.sizes[i] < stop]
        at = int(ends[groups[0]]) - self.sizes[groups[0]]
        cells: list[object] = []
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=["image"]):
                    low, high = max(start - at, 0), min(stop - at, len(batch))
                    cells += batch["image"].slice(low, max(high - low, 0)).to_pylist()
                    at += len(batch)
                    while len(cells) >= size or (cells and at >= stop):
                        yield decoded_cells(cells[:size], self.path, min(at, stop) - len(cells), self.channels)
                        del cells[:size]
                    if at >= stop:
                        return
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise DataError(f"{self.path} has no readable column `image`: {error}") from error
