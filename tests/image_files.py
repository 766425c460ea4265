"""Small image files, made in memory, and folders of files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(level: int = 0, mode: str = "RGB", size: tuple[int, int] = (4, 4), kind: str = "PNG", **options: Any) -> bytes:
    """One colour: red at `level`, or grey."""
    buffer = io.BytesIO()
    Image.new(mode, size, level if mode == "L" else (level, 0, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def make(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def parquet(images: Mapping[str, Any], features: Any = None) -> bytes:
    table = pa.table(dict(images))
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def tar(members: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
