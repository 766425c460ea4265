"""Minus the size of the image as a JPEG (DDPO, Black et al., arXiv 2305.13301)."""

from __future__ import annotations

import io
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting

QUALITY = 95


@dataclass(frozen=True, config=OPTIONS)
class JpegCompressibility:
    """Minus the kilobytes (1,000 bytes) of the student's image as a JPEG of quality 95; not differentiable.

    Raises `RewardError` for images that have neither 1 nor 3 channels.
    """

    setting: Setting
    name: ClassVar[str] = "jpeg_compressibility"
    differentiable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.setting.image_shape[0] not in (1, 3):
            raise RewardError(f"images are {self.setting.image_shape}; a JPEG has 1 or 3 channels")

    def __call__(self, inputs: RewardInputs) -> Tensor:
        pixels = (inputs.student.detach().clamp(0, 1) * 255).round().to(torch.uint8)
        sizes = [-jpeg_bytes(image) / 1000 for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        return torch.tensor(sizes, dtype=inputs.student.dtype, device=inputs.student.device)


def jpeg_bytes(image: np.ndarray) -> int:
    """Return the length in bytes of one uint8 image [H, W, 1 or 3] as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell()
