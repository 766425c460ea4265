"""The store of encoded captions: one safetensors file a caption, found by the hash of its text.

    <root>/<hash of the encoders>/<sha256 of the caption>.safetensors

The first worker that needs a caption encodes it, and all others read the same bytes. Files are written whole or not at
all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from redif_ray.errors import UserError
from redif_ray.files import atomic_file


class EncodingStoreError(UserError, RuntimeError):
    """The store cannot be read or written; the message names the file and what to do."""


class EncodingStore:
    """A store of tensors by name for each caption; the caption None stands for no caption."""

    def __init__(self, root: str | Path, identity: str) -> None:
        """Create the folder, named by `identity`, a hash of all that decides an encoding. Raises EncodingStoreError."""
        self.folder = Path(root) / identity[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EncodingStoreError(
                f"the store of encoded captions {self.folder} cannot be used: {error}; set teacher.store to a folder "
                "that can be written"
            ) from error

    def path(self, caption: str | None) -> Path:
        name = "none" if caption is None else hashlib.sha256(caption.encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def get(self, caption: str | None) -> dict[str, Tensor] | None:
        """Return a caption's tensors on the CPU, or None if none are stored yet. Raises EncodingStoreError."""
        path = self.path(caption)
        try:
            return load_file(path) if path.exists() else None
        except (SafetensorError, OSError) as error:
            raise EncodingStoreError(f"{path} is corrupt ({error}); delete it, and it is encoded again") from error

    def put(self, caption: str | None, tensors: Mapping[str, Tensor]) -> None:
        """Store a caption's tensors. Raises EncodingStoreError if the disk fails."""
        path = self.path(caption)
        try:
            with atomic_file(path) as partial:
                partial.write_bytes(save({name: value.cpu().contiguous() for name, value in tensors.items()}))
        except OSError as error:
            raise EncodingStoreError(f"cannot write {path}: {error}; free space or move teacher.store") from error
