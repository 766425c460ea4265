"""Images are read from the bytes of their files as the pixels that a viewer shows.

The image is turned as its EXIF data say, its colours are converted from its ICC profile to sRGB, and what is
transparent is laid on a background. Of several frames the first is taken. Images of more than 89 million pixels are
refused, by Pillow's guard against decompression bombs: a small file can hold them, and they take up to a GB of memory.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps

from redif_ray.data.errors import DataError, reading
from redif_ray.data.findings import Findings

WHITE = "white"
GREY_MODES = ("1", "L", "LA", "La")
# EPS runs Ghostscript on the file, the others are names without a decoder or have no pixels.
REFUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
CERTAIN = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")  # told by their first bytes


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - REFUSED))


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes, such as ".png", of the formats that are read."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def colour(text: str) -> tuple[int, int, int]:
    """Return (red, green, blue) of a colour such as white or #ff8000. Raises DataError."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise DataError(f"background={text!r} is no colour; expected a name such as white, or #rrggbb") from None


@contextmanager
def opened(source: Path | IO[bytes], kinds: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open an image of one of Pillow's formats `kinds` for the length of a block, without its pixels.

    Pillow does not warn of odd tags, which viewers ignore, in the block. Raises its errors, and its warning of a vast
    image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=kinds) as image:
            yield image


def decode(data: bytes, where: str, background: str = WHITE, findings: Findings | None = None) -> Image.Image:
    """Return the image as Pillow's mode L if it is grey, otherwise as RGB. Raises DataError.

    where: the image's name in errors. background: colour behind what is transparent. findings: where the image's size,
    mode and treatment are noted.
    """
    found = Findings() if findings is None else findings
    with reading(where, "an image that can be read"), opened(io.BytesIO(data), formats()) as stored:
        frames = getattr(stored, "n_frames", 1)
        if frames > 1 and stored.format != "MPO":  # a camera's second picture is a preview of the first
            found.changed["of several frames, of which the first is taken"] += 1
        image = _eight_bits(_turned(stored, found), stored.format, where, found)
        found.modes[stored.mode] += 1
        found.sizes[image.size] += 1
        made = _composed(image, background, found)
        return made.copy() if made is stored else made  # which ends with its file


def _turned(image: Image.Image, found: Findings) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers ignore damaged EXIF data
        return image
    if orientation not in range(2, 9):
        return image
    found.changed["turned as their EXIF data say"] += 1
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image, format: str | None, where: str, found: Findings) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and format == "PPM"):  # Pillow would clip, not scale
        found.changed["of 16 bits, reduced to 8"] += 1
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{where}: its pixels have 32 bits, whose range is not known; save it with 8 or 16 bits")
    return image


def _composed(image: Image.Image, background: str, found: Findings) -> Image.Image:
    """Return mode L or RGB: colours are those of sRGB, and what is transparent shows the background."""
    grey, profile, alpha = image.mode in GREY_MODES, image.info.get("icc_profile"), None
    if image.has_transparency_data:
        image = _in_mode(image, "LA" if grey else "RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
    if image.mode != "CMYK":
        image = _in_mode(image, "L" if grey else "RGB")
    elif not profile:
        found.changed["of CMYK without a profile, converted without one"] += 1
    if profile:
        converted = _to_srgb(image, profile)
        if converted is not None:
            found.changed["converted from their ICC profile to sRGB"] += 1
            image = converted
    image = image if grey else _in_mode(image, "RGB")
    if alpha is None:
        return image
    found.changed[f"with transparent pixels, laid on {background} (background)"] += 1
    behind = colour(background)
    flat = Image.new("L", image.size, behind[0]) if grey and len(set(behind)) == 1 else None
    flat = flat or Image.new("RGB", image.size, behind)
    flat.paste(_in_mode(image, flat.mode), mask=alpha)
    return flat


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in a mode of Pillow, and not a copy where it is in that mode."""
    image.load()  # some formats tell their mode only then
    return image if image.mode == mode else image.convert(mode)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Return the image in sRGB, in its mode if that is L; None where the profile is sRGB, or cannot be used."""
    transform = _transform(profile, image.mode)
    if transform is None:
        return None
    converted = transform.apply(image)
    return converted.getchannel(0) if image.mode == "L" else converted


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(opened).casefold():
            return None
        return ImageCms.ImageCmsTransform(opened, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB")
    except (OSError, ValueError, ImageCms.PyCMSError):  # viewers ignore a damaged profile, or one of another mode, too
        return None


def square(image: Image.Image, size: int) -> Image.Image:
    """Return the largest central square, resized to an edge of `size` pixels."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + edge, top + edge))


def picture(array: np.ndarray) -> Image.Image:
    """Return uint8 [1 or 3, height, width] as a Pillow image."""
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def array(image: Image.Image) -> np.ndarray:
    """Return a Pillow image of mode L or RGB as uint8 [1 or 3, height, width]."""
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def stack(images: list[np.ndarray], source: object) -> np.ndarray:
    """Return images [1 or 3, H, W] as one array; grey ones become RGB if any is. Raises DataError.

    source: name of the images in errors.
    """
    channels = max((image.shape[0] for image in images), default=0)
    alike = [np.broadcast_to(image, (channels, *image.shape[1:])) for image in images]
    shapes = sorted({image.shape for image in alike})
    if not shapes:
        raise DataError(f"{source} holds no images")
    if len(shapes) > 1:
        raise DataError(
            f"{source}: images differ in shape ({shapes[0]}, {shapes[-1]}, ...); pass a size such as size=32, or "
            "convert them"
        )
    return np.stack(alike, out=np.empty((len(alike), *shapes[0]), np.uint8))
