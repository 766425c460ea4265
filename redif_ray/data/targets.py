"""The store of teacher targets: one Parquet file for images that were sampled at once, found by the hash of its rows.

    <root>/<fingerprint>/about.json           settings that the fingerprint hashes
    <root>/<fingerprint>/<sha256 of rows>.parquet
    <root>/<fingerprint>/<encoder>/<sha256 of rows>.safetensors      features of these images, for rewards

A file's name is the hash of its (stream, group, condition) rows, and its folder's name the hash of everything else that
decides an image (teacher weights, solver, steps, schedule, guidance, seed). So a run reuses the targets of another run,
but only if all of these agree. Files are written whole or not at all; pages carry checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.files import atomic_file
from redif_ray.types import Condition


class TargetStoreError(UserError, RuntimeError):
    """The store cannot be read or written; the message names the file and what to do."""


def content_hash(value: Any) -> str:
    """Return the sha256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class TargetStore:
    """A store of teacher images by (stream, group, condition), float32 [C, H, W] in [0, 1], kept bit for bit."""

    def __init__(self, root: str | Path, identity: Mapping[str, Any]) -> None:
        """Create the folder. identity: everything beside the rows that decides an image; its hash names the folder."""
        self.folder = Path(root) / content_hash(identity)[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "about.json"
            if not about.exists():
                with atomic_file(about) as partial:
                    partial.write_text(json.dumps(dict(identity), indent=1, sort_keys=True))
        except OSError as error:
            raise TargetStoreError(
                f"the target store {self.folder} cannot be used: {error}; "
                "set teacher.store to a folder that can be written"
            ) from error

    def features(
        self, stream: Stream, groups: Sequence[int], conditions: Sequence[Condition], rounded: str = "float32"
    ) -> KeptFeatures:
        """Return the store of encoders' features of these images. rounded: dtype that the images went through."""
        return KeptFeatures(self, self.path(stream, groups, conditions).stem, rounded)

    def path(self, stream: Stream, groups: Sequence[int], conditions: Sequence[Condition]) -> Path:
        rows = [[int(stream), g, c] for g, c in zip(groups, conditions, strict=True)]
        return self.folder / f"{content_hash(rows)}.parquet"

    def get(
        self, stream: Stream, groups: Sequence[int], conditions: Sequence[Condition], rows: range | None = None
    ) -> np.ndarray | None:
        """Return images [G, C, H, W] float32, or None if no run has stored them yet. Raises TargetStoreError.

        rows: those of `groups` whose images are read; None: all.
        """
        path, rows = self.path(stream, groups, conditions), rows or range(len(groups))
        if not path.exists():
            return None
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            single = file.num_row_groups == len(groups)
            table = file.read_row_groups(list(rows)) if single else file.read().take(list(rows))
            shape = json.loads(table.schema.metadata[b"shape"])
            stored = table["group"].to_pylist()
            image = np.frombuffer(b"".join(table["image"].to_pylist()), np.float32).reshape(-1, *shape)
        except (pa.ArrowException, OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise TargetStoreError(f"{path} is corrupt ({error}); delete it, and it is computed again") from error
        expected = [groups[i] for i in rows]
        if stored != expected or len(image) != len(expected):
            raise TargetStoreError(
                f"{path} holds {len(image)} images of groups {stored[:4]}..., expected {expected[:4]}...; delete it"
            )
        return image

    def put(self, stream: Stream, groups: Sequence[int], conditions: Sequence[Condition], images: np.ndarray) -> None:
        """Store images, float32 [G, C, H, W]. Raises ValueError for others, TargetStoreError if the disk fails."""
        if images.dtype != np.float32 or len(images) != len(groups):
            raise ValueError(f"targets are {images.dtype} {images.shape}; expected float32 [{len(groups)}, C, H, W]")
        if not np.isfinite(images).all():
            raise ValueError(f"targets of groups {list(groups)[:4]}... are not finite; check the teacher's weights")
        table = pa.table(
            {
                "stream": pa.array([int(stream)] * len(groups), pa.int64()),
                "group": pa.array(list(groups), pa.uint64()),
                "condition": pa.array([json.dumps(c) for c in conditions], pa.string()),
                "image": pa.array([image.tobytes() for image in images], pa.binary()),
            }
        ).replace_schema_metadata({"shape": json.dumps(images.shape[1:])})
        sink = pa.BufferOutputStream()
        options = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
        pq.write_table(table, sink, row_group_size=1, **options)  # a group for each image: units read their own
        self.write(self.path(stream, groups, conditions), sink.getvalue().to_pybytes())

    def write(self, path: Path, data: bytes) -> None:
        """Write `data` to the file `path` of the store. Raises TargetStoreError if the disk fails."""
        try:
            path.parent.mkdir(exist_ok=True)
            with atomic_file(path) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise TargetStoreError(
                f"cannot write {path}: {error}; free space or set teacher.store elsewhere"
            ) from error


class KeptFeatures:
    """A store of features [G, ...] float32, by encoder, of the images in one file of the target store.

    rounded: dtype that the images went through, without which features would depend on the run that made them first.
    """

    def __init__(self, store: TargetStore, name: str, rounded: str) -> None:
        self.store, self.name, self.rounded = store, name, rounded

    def path(self, encoder: str) -> Path:
        kind = encoder[:16] if self.rounded == "float32" else f"{encoder[:16]}-{self.rounded}"
        return self.store.folder / kind / f"{self.name}.safetensors"

    def get(self, encoder: str) -> np.ndarray | None:
        """Return the features, or None if none are stored yet. Raises TargetStoreError."""
        path = self.path(encoder)
        try:
            return load_file(path)["features"] if path.exists() else None
        except (SafetensorError, OSError, KeyError) as error:
            raise TargetStoreError(f"{path} is corrupt ({error}); delete it, and it is computed again") from error

    def put(self, encoder: str, features: np.ndarray) -> None:
        self.store.write(self.path(encoder), save({"features": np.ascontiguousarray(features)}))
