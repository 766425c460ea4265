"""The store of encoded captions: one compressed safetensors file a caption, found by the hash of its text, and
one for each picture with its caption.

    <root>/<hash of the encoders>/<sha256 of the condition>.safetensors.zst

The first worker that needs a caption encodes it, and all others read the same bytes. Tensors keep the dtype in which
the encoders made them, which is 16 bits where these compute in 16 bits. The states of padded tokens are stored, because
Stable Diffusion's networks read them without a mask and they differ from one another. Constant padding, as in the
channels that CLIP's states lack beside T5's, takes no room once compressed. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from redif_ray.errors import UserError
from redif_ray.files import atomic_file
from redif_ray.types import Edit


class EncodingStoreError(UserError, RuntimeError):
    """The store cannot be read or written; the message names the file and what to do."""


class EncodingStore:
    """A store of tensors by name for each caption or edit; None stands for no caption."""

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

    def path(self, caption: str | Edit | None) -> Path:
        text = json.dumps(caption) if isinstance(caption, Edit) else caption
        name = "none" if text is None else hashlib.sha256(text.encode()).hexdigest()
        return self.folder / f"{name}.safetensors.zst"

    def get(self, caption: str | Edit | None) -> dict[str, Tensor] | None:
        """Return a caption's tensors on the CPU, or None if none are stored yet. Raises EncodingStoreError."""
        path = self.path(caption)
        try:
            if not path.exists():
                return None
            with pa.input_stream(str(path), compression="zstd") as source:
                return load(source.read())
        except (SafetensorError, OSError) as error:
            raise EncodingStoreError(f"{path} is corrupt ({error}); delete it, and it is encoded again") from error

    def put(self, caption: str | Edit | None, tensors: Mapping[str, Tensor]) -> None:
        """Store a caption's tensors. Raises EncodingStoreError if the disk fails."""
        path = self.path(caption)
        try:
            with atomic_file(path) as partial, pa.output_stream(str(partial), compression="zstd") as sink:
                sink.write(save({name: value.cpu().contiguous() for name, value in tensors.items()}))
        except OSError as error:
            raise EncodingStoreError(f"cannot write {path}: {error}; free space or move teacher.store") from error
