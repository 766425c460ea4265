"""Preparation of images in [0, 1] for a pretrained encoder: resize, crop, normalise; differentiable, in torch alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.term import RewardError

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
MODES = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers, which preprocessor_config.json uses


@dataclass(frozen=True)
class Preparation:
    """The resizing, cropping and normalisation of images; calling it applies them.

    resize: the shorter edge in pixels, or (height, width); None: no resizing. crop: (height, width) of the middle that
        is kept; None: no crop. mode: a value of `MODES`. mean, std: of each channel, for pixels in [0, 1].
    Resampling is antialiased, as PIL's is, and clamped to [0, 1], as 8-bit pixels are; nothing is rounded.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None = None
    mode: str = "bicubic"
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD

    @property
    def whole(self) -> Preparation:
        """Return the preparation without the crop: it resizes the whole image to the crop's size."""
        return self if self.crop is None else replace(self, resize=self.crop, crop=None)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raise `RewardError` if images of shape (C, H, W) cannot be prepared."""
        if image_shape[0] not in (1, 3):
            raise RewardError(f"images are {image_shape}; the encoder takes 1 or 3 channels")
        size = self._resized(*image_shape[1:])
        if self.crop is not None and (size[0] < self.crop[0] or size[1] < self.crop[1]):
            raise RewardError(
                f"crop_size {self.crop} is larger than the resized image {size}; "
                "expected a size at least as large in preprocessor_config.json"
            )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, int):  # the longer edge is rounded down, as in transformers
            long = int(self.resize * max(height, width) / min(height, width))
            return (self.resize, long) if height <= width else (long, self.resize)
        return self.resize or (height, width)

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images [B, 1 or 3, H, W] in [0, 1]; returns normalised [B, 3, h, w], a grey channel repeated."""
        images = self._fitted(images)
        mean, std = (
            torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (images - mean) / std

    def _fitted(self, images: Tensor) -> Tensor:
        """Resize and crop images."""
        size = self._resized(*images.shape[2:])
        if size != tuple(images.shape[2:]):
            images = F.interpolate(images, size=size, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
        if self.crop is not None:
            top, left = self._margin(size[0] - self.crop[0]), self._margin(size[1] - self.crop[1])
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        return images

    def _margin(self, beyond: int) -> int:
        """Return how many of the pixels that an image has beyond the crop are cut off before it; as in transformers."""
        return beyond // 2


def read_preparation(config: Mapping[str, Any], default: Preparation, where: str) -> Preparation:
    """Return the preparation of the image processor with this `preprocessor_config.json`.

    default: the preparation whose values stand in for absent keys. where: the file's path, for messages.
    Raises `RewardError` unless the processor does resize, centre crop, rescale by 1/255 and normalise alone.
    """
    try:
        resize = _resize(config["size"]) if "size" in config else default.resize
        crop = _pair(config["crop_size"]) if config.get("crop_size") is not None else default.crop
        mean, std = (
            _triple(config.get(key) or value)
            for key, value in (("image_mean", default.mean), ("image_std", default.std))
        )
        mode = MODES[config["resample"]] if "resample" in config else default.mode
        if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6 or not config.get("do_rescale", True):
            raise ValueError("rescale_factor is not 1/255")
    except (KeyError, TypeError, ValueError) as error:
        raise RewardError(
            f"{where}: {type(error).__name__} {error}; expected size (shortest_edge, or height and width), crop_size, "
            f"resample 2 or 3, image_mean and image_std of three numbers, rescale_factor 1/255"
        ) from error
    crops = config.get("do_center_crop", default.crop is not None)
    normalises = config.get("do_normalize", True)
    return Preparation(
        resize=resize if config.get("do_resize", True) else None,
        crop=crop if crops else None,
        mode=mode,
        mean=mean if normalises else (0.0, 0.0, 0.0),
        std=std if normalises else (1.0, 1.0, 1.0),
    )


def _resize(size: Any) -> int | tuple[int, int]:
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    return int(size) if isinstance(size, int) else _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if set(size) != {"height", "width"}:
        raise ValueError(f"size {size}")
    return int(size["height"]), int(size["width"])


def _triple(values: Any) -> Triple:
    r, g, b = (float(value) for value in values)
    return r, g, b


def enlarged(images: Tensor, edge: int) -> Tensor:
    """Enlarge images [B, C, H, W] bilinearly until the shorter edge has at least `edge` pixels."""
    short = min(images.shape[2:])
    if short >= edge:
        return images
    size = [round(n * edge / short) for n in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
