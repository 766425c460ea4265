"""Files that are written whole or not at all, whoever else writes them at once."""

from __future__ import annotations

import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; workers may write the same file at once. Raises OSError."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
