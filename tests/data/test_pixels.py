"""Pixels as a viewer shows them: orientation, transparency, depths, frames and profiles."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import make, png
from PIL import Image, ImageCms

from redif_ray.data.errors import DataError
from redif_ray.data.images import decoded_cells, load_images


def turned(orientation: int) -> bytes:
    """Two pixels wide: black, then white, which a viewer turns."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255]], np.uint8).repeat(8, 0).repeat(8, 1)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    found = load_images(make(tmp_path, {"1.jpg": turned(6)})).images[0, 0]
    assert found.shape == (16, 8) and found[:7].max() < 20 and found[9:].min() > 235


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sprite(mode: str) -> Image.Image:
    """Black, the left half transparent."""
    image = Image.new("LA" if mode == "LA" else "RGBA", (2, 1), (0, 0) if mode == "LA" else (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 255) if mode == "LA" else (0, 0, 0, 255))
    return image.quantize(2) if mode == "P" else image


GREY = Image.new("L", (1, 1), 9)
P3_RED = (234, 51, 35)  # sRGB (255, 0, 0) in Display P3, which converts back


@pytest.mark.parametrize(
    ("data", "background", "expected", "note"),
    [
        (saved(sprite("RGBA")), "white", [[255, 0]] * 3, "1 with transparent pixels, laid on white (background)"),
        (saved(sprite("RGBA")), "#102030", [[16, 0], [32, 0], [48, 0]], "laid on #102030"),
        (saved(sprite("LA")), "white", [[255, 0]], "laid on white"),
        (saved(sprite("LA")), "red", [[255, 0], [0, 0], [0, 0]], "laid on red"),
        (saved(sprite("P")), "white", [[255, 0]] * 3, "laid on white"),
        (saved(sprite("RGBA"), "WEBP", lossless=True), "white", [[255, 0]] * 3, "laid on white"),
        (saved(sprite("RGBA"), "GIF"), "white", [[255, 0]] * 3, "laid on white"),
        (saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), "white", [[255]] * 3, "laid on white"),
        (saved(Image.new("RGBA", (1, 1), (1, 2, 3, 255))), "white", [[1], [2], [3]], ""),
        (
            saved(GREY, "GIF", save_all=True, append_images=[Image.new("L", (1, 1), 99)]),
            "white",
            [[9]] * 3,
            "1 of several frames",
        ),
        (
            saved(GREY.convert("RGB"), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (1, 1))]),
            "white",
            [[9]] * 3,
            "of several frames",
        ),
        (
            saved(Image.fromarray(np.array([[0x1234]], np.uint16)), "TIFF"),
            "white",
            [[0x12]],
            "1 of 16 bits, reduced to 8",
        ),
        (b"P5 1 1 65535 \x12\x34", "white", [[0x12]], "1 of 16 bits, reduced to 8"),
        (
            saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"),
            "white",
            [[255], [0], [0]],
            "of CMYK without a profile",
        ),
        (saved(GREY, icc_profile=b"no profile"), "white", [[9]], ""),
        (saved(Image.new("1", (1, 1), 1)), "white", [[255]], ""),
    ],
)
def test_pixels_as_a_viewer_shows_them(data: bytes, background: str, expected: Any, note: str, tmp_path: Path) -> None:
    found = load_images(make(tmp_path, {"x.pgm" if data.startswith(b"P5") else "x": data}), background=background)
    assert found.images[0, :, 0].tolist() == expected
    changed = [line for line in found.summary() if line.startswith("  changed: ")]
    assert note in "".join(changed) and bool(changed) == bool(note)


def test_colours_are_converted_from_their_profile(tmp_path: Path) -> None:
    """A profile whose numbers are CIE Lab's is no RGB one and is ignored; one with other primaries is converted."""
    other = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = other.index(b"rXYZ"), other.index(b"gXYZ")
    other[red : red + 4], other[green : green + 4] = b"gXYZ", b"rXYZ"  # its red is sRGB's green
    for word in ("sRGB", "sRGB built-in"):
        other = bytearray(bytes(other).replace(word.encode("utf-16-be"), b"\0x" * len(word)))
    image = Image.new("RGB", (1, 1), (200, 0, 0))
    files = {"1.png": saved(image, icc_profile=bytes(other)), "2.png": saved(image)}
    found = load_images(make(tmp_path, files))
    swapped, plain = found.images[:, :, 0, 0].tolist()
    assert plain == [200, 0, 0] and swapped[1] > 195 and max(swapped[0], swapped[2]) < 5
    assert found.findings.changed == {"converted from their ICC profile to sRGB": 1}


@pytest.mark.parametrize("bits", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(bits: str, tmp_path: Path) -> None:
    make(tmp_path, {"x.tif": saved(Image.new(bits, (1, 1), 7), "TIFF")})
    with pytest.raises(DataError, match=r"x\.tif: its pixels have 32 bits, whose range is not known"):
        load_images(tmp_path)


def test_grey_among_colour_becomes_rgb(tmp_path: Path) -> None:
    found = load_images(make(tmp_path, {"1.png": png(5, "L"), "2.png": png(7)}), size=2)
    assert found.images.shape == (2, 3, 2, 2) and found.images[0].tolist() == [[[5, 5]] * 2] * 3
    assert decoded_cells([png(5, "L")], tmp_path, channels=3).shape == (1, 3, 4, 4)


def test_a_profile_of_another_mode_or_without_contents_is_ignored(tmp_path: Path) -> None:
    empty = bytes(36) + b"acsp" + bytes(100)
    found = load_images(make(tmp_path, {"1.png": png(9, icc_profile=empty)}))
    assert found.images[0, :, 0, 0].tolist() == [9, 0, 0] and not found.findings.changed


@pytest.mark.parametrize("name", ["1.png", "without suffix"])
def test_a_small_file_that_says_that_it_is_vast_is_refused_unread(name: str, tmp_path: Path) -> None:
    """One of 90 million pixels: Pillow warns of it, and would read it."""
    data = png(1)
    head = b"IHDR" + struct.pack(">II", 10_000, 9_000) + data[24:29]
    data = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    with (
        warnings.catch_warnings(),
        pytest.raises(DataError, match=rf"{name} is not an image .*\(90000000 pixels\) exceeds"),
    ):
        warnings.simplefilter("error")
        load_images(make(tmp_path, {name: data}), size=8)
