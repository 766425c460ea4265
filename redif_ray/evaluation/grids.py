"""Grids of images as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SMALLEST = 64  # edge in pixels below which an image is enlarged, so that details are visible


def tile(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows of images as one picture [height, width, 3] uint8, with small images enlarged.

    rows: each [n, C, H, W], float in [0, 1] or uint8.
    """
    images = np.stack(rows)
    scale = max(1, math.ceil(SMALLEST / images.shape[-1]))
    pixels = images if images.dtype == np.uint8 else np.round(images * 255).astype(np.uint8)
    pixels = pixels.repeat(scale, -2).repeat(scale, -1)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, 2)
    high, wide, channels, height, width = pixels.shape
    return pixels.transpose(0, 3, 1, 4, 2).reshape(high * height, wide * width, channels)


def as_picture(image: np.ndarray) -> Image.Image:
    """Return an image [C, H, W], float in [0, 1], of 1 or 3 channels, as a picture of as many pixels."""
    pixels = np.round(image * 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def write_grid(path: str | Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write images [n, C, H, W] float in [0, 1] as a PNG, about square by default; white fills up the last row."""
    if columns is None:
        columns = 10 if len(images) % 10 == 0 else math.ceil(math.sqrt(len(images)))
    missing = -len(images) % columns
    filled = np.concatenate([images, np.ones((missing, *images.shape[1:]), images.dtype)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile([filled[i : i + columns] for i in range(0, len(filled), columns)])).save(path)
