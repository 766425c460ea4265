"""Captions and labels of conditions in the files in which people have them, and the split that spellings share."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from image_files import make, parquet, tar

from redif_ray.config import ConfigError
from redif_ray.data.captions import read_column
from redif_ray.data.conditions import plain, share, split
from redif_ray.data.findings import Findings

TWO = ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"1.png": "", "1.txt": "a cat", "2.jpg": "", "2.caption": "a dog\n", "requirements.txt": "torch"}, ""),
        ({"1.png": "", "1.txt": "\ufeffa cat", "x/2.tif": "", "x/2.txt": "a dog", ".git/3.txt": "x", ".3.png": ""}, ""),
        ({"1.png": "", "1.txt": "a cat", "2.png": "", "2.txt": "a dog", "sizes.csv": "x,y\n1,2\n"}, ""),
        ({"metadata.csv": "file_name,text\n1.png,a cat\n2.png,a dog\n", "1.png": "", "1.txt": "not this"}, ""),
        ({"metadata.csv": "file_name,text\n1.png,a cat\n2.png,a dog\n", "more.parquet": "no Parquet"}, ""),
        ({"a.csv": "Caption\na cat\na dog\n"}, "a.csv"),
        ({"a.csv": 'id;caption\n1;"a cat"\n2;a dog\n'}, "a.csv"),
        ({"a.tsv": "id\tcaption\n1\ta cat\n2\ta dog\n"}, "a.tsv"),
        ({"a.csv": "\ufeffcaption,id\r\na cat,1\r\na dog,2\r\n"}, "a.csv"),
        ({"a.jsonl": '\ufeff{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n'}, "a.jsonl"),
        ({"a.json": '[{"caption": "a cat"},\n {"caption": "a dog"}]'}, "a.json"),
        ({"a.json": '{"caption": "a cat"}\n{"caption": "a dog"}\n'}, "a.json"),
        ({"a.jsonl": '{"captions": ["a cat", "a dog"]}\n'}, "a.jsonl"),
        ({"a.parquet": parquet({"image": [b"no image"] * 2, "TEXT": TWO})}, "a.parquet"),
        ({"a.tar": tar({"1.jpg": "", "1.txt": "a cat", "2.jpg": "", "2.json": '{"text": "a dog"}'})}, "a.tar"),
        ({"a.tar.gz": gzip.compress(tar({"1.txt": "a cat", "2.txt": "\ufeffa dog\n"}))}, "a.tar.gz"),
        ({"0.tar": tar({"1.txt": "a cat"}), "1.tar": tar({"1.txt": "a dog"})}, ""),
        ({"a.txt": "\ufeffa cat\r\n\r\n a dog \r\n"}, "a.txt"),
    ],
)
def test_captions(files: Any, source: str, tmp_path: Path) -> None:
    assert read_column(str(make(tmp_path, files) / source), None, str) == TWO


def test_a_line_ends_where_editors_end_it(tmp_path: Path) -> None:
    """Unicode has further separators, which occur inside texts that were copied from pages."""
    texts = ["one\u2028line", "two\x85line", "three\x0cline"]
    make(tmp_path, {"a.txt": "\n".join(texts)})
    assert read_column(str(tmp_path / "a.txt"), None, str) == texts


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    make(tmp_path, {"1.png": "", "1.txt": "a cat", "2.png": "", "notes.txt": "x", ".x": ""})
    found = Findings()
    assert read_column(str(tmp_path), None, str, findings=found) == ["a cat"]
    assert found.left_out == {
        "hidden": [".x"],
        "files .txt": ["notes.txt"],
        "images without a caption beside them": ["2.png"],
    }


@pytest.mark.parametrize(
    ("files", "source", "pattern"),
    [
        ({"requirements.txt": "torch"}, "", r"is a folder without .*, or a \.txt beside each image; found 1 of \.txt"),
        ({"a.txt": "ein Gru\xdf".encode("latin-1")}, "a.txt", "'utf-8' is expected, and byte 7 .* is 0xdf, as in Wind"),
        ({"a.txt": "a cat".encode("utf-16")}, "a.txt", r"a\.txt is UTF-16; convert it, such as with iconv -f UTF-16"),
        ({"a.txt": "a cat".encode("utf-16-le")}, "a.txt", r"a\.txt is UTF-16, or no text"),
        ({"a.csv": b"caption\n\xff\n"}, "a.csv", "'utf-8' is expected, and byte 8"),
        (
            {"a.csv": "caption\na cat, sitting\n"},
            "a.csv",
            "row 2 has 2 fields for the 1 columns caption; put",
        ),
        ({"a.csv": 'caption\n"a cat\n'}, "a.csv", r"is not a readable \.csv file: unexpected end"),
        (
            {"a.csv": "a cat\na dog\n"},
            "a.csv",
            r"has the columns \['a cat'\]; expected caption or text or prompt, or",
        ),
        ({"a.csv": "caption,caption\na,b\n"}, "a.csv", "names a column twice"),
        ({"a.csv": ""}, "a.csv", r"has the columns \[\]"),
        ({"a.jsonl": '{"caption": "a"}\n"b"\n'}, "a.jsonl", "row 2 is str; expected an object"),
        ({"a.jsonl": "[" * 100_000}, "a.jsonl", "line 1 cannot be read as JSON: it is nested too deeply"),
        ({"a.json": '{"images": [], "annotations": []}'}, "a.json", r"has the columns \['images', 'annotations'\]"),
        ({"1.png": "", "1.txt": " "}, "", r"holds ''; expected a text in every row \(.*1\.txt\)"),
        ({"a.tar": tar({"1.jpg": ""})}, "a.tar", "holds nothing"),
        ({"a.tar": tar({"1.json": '{"label": 3}'})}, "a.tar", r"has no caption: expected .*1\.txt, or a key of"),
        ({"a.tar": tar({"1.json": "[3]"})}, "a.tar", r"1\.json holds list; expected an object"),
        ({"a.zip": ""}, "a.zip", "expected a folder, or a file that ends in .*; unpack it first"),
    ],
)
def test_what_is_refused(files: Any, source: str, pattern: str, tmp_path: Path) -> None:
    path = make(tmp_path, files) / source
    with pytest.raises(ConfigError, match=rf"conditions\.source={path}.*{pattern}"):
        read_column(str(path), None, str)


def test_a_table_that_says_it_is_huge_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redif_ray.data.layouts.tables.MOST_ROWS", 9)
    make(tmp_path, {"a.parquet": parquet({"text": ["a cat"] * 10})})
    with pytest.raises(ConfigError, match=r"says that it has 10 rows; expected 9 at most"):
        read_column(str(tmp_path / "a.parquet"), None, str)


@pytest.mark.parametrize(
    "other",
    [
        *("A Caf\u00e9", "a cafe\u0301", "a caf\u00c9 ", "a  caf\u00e9", "a\u00a0caf\u00e9", "\ufeffa caf\u00e9"),
        *("\uff41 caf\u00e9", "a\tcaf\u00e9\n", "a caf\u00ad\u00e9", "A CAFE\u0301"),
    ],
)
def test_spellings_that_encode_alike_are_one_caption(other: str) -> None:
    assert share(other) == share("a caf\u00e9") and plain(other) == "a caf\u00e9"
    found = split(["a caf\u00e9", other, "something else"], 0, seed=0)
    assert found.training == ("a caf\u00e9", "something else")
    assert found.notes == (
        "captions: 3, of which 1 repeat another one, or differ in case, spaces or form alone; 2 train and evaluate",
    )


def test_no_held_out_caption_is_trained_on_in_another_spelling() -> None:
    captions = [f"a picture of {i}" for i in range(500)]
    found = split([*captions, *(caption.capitalize() for caption in captions)], 0.3, seed=0)
    assert not {plain(caption) for caption in found.training} & {plain(caption) for caption in found.held_out}
    assert len(found.training) + len(found.held_out) == 500
    assert found.notes[0].startswith("captions: 1,000, of which 500 repeat another one")


@pytest.mark.parametrize("caption", ["", "  ", "\u200b", None, 3, "half \ud83d"])
def test_captions_that_are_no_text_are_refused(caption: Any) -> None:
    with pytest.raises(ConfigError, match=r"the caption .* is (not a|no valid) text"):
        split(["a cat", caption], 0, seed=0)
