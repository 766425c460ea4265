"""The store of the pictures that an editing model changes: one PNG a picture, of the size of the run's images.

    <root>/<sha256 of the size and of the source's file>.png

The driver keeps a run's pictures there before it starts; conditions name them, and the processes that encode
conditions read them. A picture that is there is not decoded again. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from redif_ray.data.pixels import decode
from redif_ray.errors import UserError
from redif_ray.files import atomic_file


class PictureStoreError(UserError, RuntimeError):
    """The store cannot be read or written; the message names the file and what to do."""


class PictureStore:
    """A store of pictures, RGB of 8 bits, by their names."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Use `folder`, which is made with the first picture; None: one that goes with this object."""
        if folder is None:
            self._own = tempfile.TemporaryDirectory(prefix="redif-pictures-")
            folder = self._own.name
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def keep(self, data: bytes, where: str, size: tuple[int, int]) -> str:
        """Keep the picture in an image file's bytes at `size`, (height, width) in pixels, and return its name.

        A picture of another shape loses what is outside of its centre. where: the file, for errors.
        Raises DataError for what is no image, and PictureStoreError if the disk fails.
        """
        height, width = size
        name = hashlib.sha256(f"{height} x {width} ".encode() + data).hexdigest()
        path = self.path(name)
        if path.exists():
            return name
        image = ImageOps.fit(decode(data, where).convert("RGB"), (width, height))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                image.save(partial, "png")
        except OSError as error:
            raise PictureStoreError(
                f"cannot write {path}: {error}; free space or set teacher.store elsewhere"
            ) from error
        return name

    def read(self, name: str) -> Tensor:
        """Return a picture, float32 [3, H, W] in [0, 1]. Raises PictureStoreError where it cannot be read."""
        try:
            with Image.open(self.path(name), formats=["PNG"]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise PictureStoreError(
                f"{self.path(name)} cannot be read: {error}; delete it and start the run again with --resume, which "
                "keeps it anew"
            ) from error
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255
