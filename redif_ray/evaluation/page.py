"""`report.html`: the report as one file, with its pictures inside and the arms' images side by side."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from markdown_it import MarkdownIt
from PIL import Image

from redif_ray.types import Condition, told

SIDE_BY_SIDE = "samples.png"  # the picture of the report in whose place the page has images of its own
FAITHFUL = 128  # edge in pixels up to which an image is stored without loss
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8884; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100% } p > img { background: white }
th { white-space: normal; vertical-align: bottom; text-align: left }
.arms td { padding: .1rem; border: 0 } .arms td:first-child { max-width: 16rem; white-space: normal }
.arms th { position: sticky; top: 0; background: Canvas; white-space: normal; vertical-align: bottom; text-align: left }
.arms th { padding: .3rem .1rem; border: 0; max-width: 5rem }
.arms img { width: min(18vw, 112px); image-rendering: pixelated; display: block }
.arms img.large { width: min(18vw, 256px); image-rendering: auto }
code { overflow-wrap: anywhere }
"""


def write_page(
    folder: Path,
    arms: Sequence[tuple[str, np.ndarray]] = (),
    conditions: Sequence[Condition] = (),
    class_names: Mapping[int, str] = MappingProxyType({}),
) -> Path:
    """Write `report.html` into `folder` from its `report.md` and return the path.

    arms: (label, images uint8 [k, C, H, W]) of each, all of the same k noises, for a report with `samples.png`.
    conditions: at least k of them. class_names: of the classes that have one.
    """
    text = (folder / "report.md").read_text()
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    picture = re.compile(r'<img src="([^"]+)" alt="([^"]*)" />')

    def shown(match: re.Match[str]) -> str:
        path, label = folder / match[1], match[2]
        if match[1] == SIDE_BY_SIDE:
            return _arms(arms, [_shown(condition, class_names) for condition in conditions])
        return f'<img src="{_uri(path.read_bytes(), "png")}" alt="{label}">' if path.is_file() else label

    title = html.escape(text.partition("\n")[0].lstrip("# "))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = folder / "report.html"
    page.write_text(f"<!doctype html>{head}<style>{STYLE}</style>\n{picture.sub(shown, body)}")
    return page


def _shown(condition: Condition, class_names: Mapping[int, str]) -> str:
    """Return a caption, the name of a class, or nothing where there is no condition."""
    known = told(condition)
    return class_names.get(known, f"class {known}") if isinstance(known, int) else known or ""


def _arms(arms: Sequence[tuple[str, np.ndarray]], conditions: Sequence[str]) -> str:
    """Return a table of images, with a column for each arm and a row for each noise."""
    rows = ["".join(f"<th>{html.escape(label)}</th>" for label in ("", *(label for label, _ in arms)))]
    for i in range(len(arms[0][1])):
        cells = (f'<td><img class="{_size(images[i])}" src="{_image(images[i])}" alt=""></td>' for _, images in arms)
        rows.append(f"<td>{html.escape(conditions[i])}</td>{''.join(cells)}")
    return f'<table class="arms">{"".join(f"<tr>{row}</tr>" for row in rows)}</table>'


def _size(image: np.ndarray) -> str:
    return "small" if max(image.shape) <= FAITHFUL else "large"


def _image(image: np.ndarray) -> str:
    """Return an image uint8 [C, H, W] as a data URI."""
    pixels = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    kind, buffer = ("png" if _size(image) == "small" else "jpeg"), io.BytesIO()
    pixels.save(buffer, kind, quality=90)
    return _uri(buffer.getvalue(), kind)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
