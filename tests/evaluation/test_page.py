"""The report as one file."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from redif_ray.evaluation.page import write_page
from redif_ray.types import Edit


def test_the_page_needs_no_other_file_and_believes_no_caption(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "reward.png")
    (tmp_path / "report.md").write_text(
        "# run: 4 steps\n\n| arm | NFE |\n| --- | ---: |\n| <b>teacher</b> | 4 |\n\n"
        "![Images.](samples.png)\n\n![Reward.](reward.png)\n\n![Gone.](schedule.png)\n"
    )
    grey = np.full((2, 1, 4, 6), 9, np.uint8)
    arms = [("teacher", grey), ("student", grey + 1)]
    text = write_page(tmp_path, arms, ["<script>alert(1)</script>", 3, None], {}).read_text()
    assert "<title>run: 4 steps</title>" in text and '<td style="text-align:right">4</td>' in text
    assert "<script>" not in text and "&lt;script&gt;" in text and "<b>" not in text and "class 3" in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in sources]
    assert [int(image.max()) for image in shown] == [9, 10, 9, 10, 7]  # teacher and student of a noise side by side
    assert "http" not in text


def test_classes_have_names_and_edits_their_captions(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# x\n\n![Images.](samples.png)\n")
    grey = np.full((3, 1, 4, 6), 9, np.uint8)
    text = write_page(tmp_path, [("teacher", grey)], [1, 2, Edit("in red", "picture")], {1: "boot & shoe"}).read_text()
    assert re.findall("<tr><td>(.*?)</td>", text) == ["boot &amp; shoe", "class 2", "in red"]


def test_large_images_are_stored_small(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# x\n\n![Images.](samples.png)\n")
    noise = np.random.default_rng(0).integers(0, 255, (1, 3, 256, 256), np.uint8)
    text = write_page(tmp_path, [("teacher", noise)], [None], {}).read_text()
    assert 'class="large" src="data:image/jpeg;base64,' in text
