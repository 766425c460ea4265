"""Images in the layouts and the modes in which people have them: each small set is made here, and read whole."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from image_files import make, parquet, png, tar

from redif_ray.data import memory
from redif_ray.data.errors import DataError
from redif_ray.data.images import ImageSet, load_images


def reds(images: ImageSet) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.images]


def names(images: ImageSet) -> list[str] | None:
    return None if images.labels is None else [images.classes[label] for label in images.labels]


CELLS = [png(1), png(2), png(3)]
STRUCTS = [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(CELLS)]
CLASS_LABEL = {"_type": "ClassLabel", "names": ["cat", "dog"]}
DONE = [1, 2, 3], ["cat", "dog", "cat"]
META = "file_name,label\n1.png,cat\n2.png,dog\n3.png,cat\n"
FLAT = {"1.png": png(1), "2.png": png(2), "3.png": png(3)}


@pytest.mark.parametrize(
    ("files", "source", "expected", "labels"),
    [
        (
            {"cat/1.png": png(1), "dog/2.tif": png(2, kind="TIFF"), "dog/3": png(3)},
            "",
            [1, 2, 3],
            ["cat", "dog", "dog"],
        ),
        ({"cat/1.png": png(1), ".ipynb_checkpoints/0-checkpoint.png": png(9), "cat/._1.png": "x"}, "", [1], ["cat"]),
        ({"__MACOSX/cat/._1.png": "x", "cat/1.jfif": png(1), "cat/Thumbs.db": "x"}, "", [1], ["cat"]),
        ({"train/cat/1.png": png(1), "test/cat/2.png": png(2), "train/dog/3.png": png(3)}, "", [1, 3], ["cat", "dog"]),
        ({"Training/a/1.png": png(1), "valid/a/2.png": png(2), "more/a/3.png": png(3)}, "", [1], ["a"]),
        ({"train/1.png": png(1), "test/2.png": png(2), "README.md": "x"}, "", [1], None),
        ({"train/1.png": png(1), "plane/2.png": png(2)}, "", [2, 1], ["plane", "train"]),
        ({"archive/cat/1.png": png(1), "archive/dog/2.png": png(2)}, "", [1, 2], ["cat", "dog"]),
        ({"archive/train/cat/1.png": png(1), "archive/val/cat/2.png": png(2)}, "", [1], ["cat"]),
        ({"10/1.png": png(1), "9/2.png": png(2)}, "", [1, 2], ["10", "9"]),
        ({"metadata.csv": META, **FLAT}, "", [1, 2, 3], ["cat", "dog", "cat"]),
        ({"metadata.csv": META.replace(",", ";"), **FLAT}, "", [1, 2, 3], ["cat", "dog", "cat"]),
        ({"metadata.csv": "\ufeff" + META.replace("\n", "\r\n"), **FLAT}, "", [1, 2, 3], ["cat", "dog", "cat"]),
        ({"list.csv": META, **FLAT}, "list.csv", [1, 2, 3], ["cat", "dog", "cat"]),
        (
            {"labels.csv": META, "images/1.png": png(1), "images/2.png": png(2), "images/3.png": png(3)},
            "labels.csv",
            *DONE,
        ),
        ({"l.csv": META.replace("file_name", "image"), **FLAT}, "l.csv", *DONE),
        ({"metadata.csv": "filename,class\n2.png,1\n1.png,0\n", **FLAT}, "", [2, 1], ["1", "0"]),
        ({"train/metadata.jsonl": '{"file_name": "1.png", "text": "a cat"}\n', "train/1.png": png(1)}, "", [1], None),
        ({"metadata.jsonl": '{"file_name": "a\\\\1.png", "labels": "x"}\n', "a/1.png": png(1)}, "", [1], ["x"]),
        ({"metadata.csv": "file_name,label,split\n1.png,a,train\n2.png,b,test\n", **FLAT}, "", [1], ["a"]),
        ({"metadata.csv": "file_name\ncafe\u0301.png\n", "caf\u00e9.png": png(1)}, "", [1], None),
        (
            {"metadata.parquet": parquet({"file_name": ["2.png"], "label": [1]}, {"label": CLASS_LABEL}), **FLAT},
            *("", [2], ["dog"]),
        ),
        ({"a.parquet": parquet({"image": CELLS, "fine_label": [0, 2, 1]})}, "a.parquet", [1, 2, 3], ["0", "2", "1"]),
        ({"a.parquet": parquet({"img": STRUCTS, "Labels": [0, 2, 1]})}, "a.parquet", [1, 2, 3], ["0", "2", "1"]),
        (
            {"a.parquet": parquet({"photo": STRUCTS, "kind": [0, 1, 0]}, {"kind": CLASS_LABEL})},
            *("a.parquet", [1, 2, 3], ["cat", "dog", "cat"]),
        ),
        (
            {
                "a.parquet": parquet(
                    {"scan": STRUCTS, "label": [0, 1, 0]}, {"scan": {"_type": "Image"}, "label": CLASS_LABEL}
                )
            },
            *("a.parquet", [1, 2, 3], ["cat", "dog", "cat"]),
        ),
        (
            {
                "data/train-00000-of-00002.parquet": parquet({"image": CELLS[:1], "label": [1]}),
                "data/train-00001-of-00002.parquet": parquet({"image": CELLS[1:2], "label": [0]}),
                "data/test-00000-of-00001.parquet": parquet({"image": CELLS[2:], "label": [0]}),
                "README.md": "x",
            },
            *("", [1, 2], ["1", "0"]),
        ),
        ({"a.parquet": parquet({"image": CELLS, "text": ["a", "b", "c"]})}, "a.parquet", [1, 2, 3], None),
        (
            {"a.tar": tar({"x/1.png": png(1), "x/1.cls": "1", "x/2.png": png(2), "x/2.cls": "0", "x/.3.png": "x"})},
            *("a.tar", [1, 2], ["1", "0"]),
        ),
        (
            {
                "00.tar": tar({"1.jpg": png(1), "1.json": '{"label": "b"}'}),
                "01.tar": tar({"2.jpg": png(2), "2.json": '{"label": "a"}'}),
            },
            *("", [1, 2], ["b", "a"]),
        ),
        ({"a.tar": tar({"1.png": png(1), "1.txt": "a cat", "1.mask.png": png(9)})}, "a.tar", [1], None),
    ],
)
def test_layouts(files: Any, source: str, expected: list[int], labels: list[str] | None, tmp_path: Path) -> None:
    found = load_images(make(tmp_path, files) / source)
    assert reds(found) == expected and names(found) == labels


def test_class_names_of_metadata_are_those_of_the_feature(tmp_path: Path) -> None:
    """Whole-number labels have them too, also where a class has no image; numbers sort by their size."""
    data = parquet({"image": CELLS[:1], "label": [1]}, {"label": CLASS_LABEL})
    found = load_images(make(tmp_path, {"a.parquet": data}) / "a.parquet")
    assert found.classes == ("cat", "dog") and names(found) == ["dog"]
    assert "  warning: there is no image of 'cat'" in list(found.summary())
    folder = make(tmp_path / "numbers", {f"{i}/x.png": png(i) for i in range(12)})
    assert load_images(folder).classes == tuple(str(i) for i in range(12))


@pytest.mark.parametrize(
    ("files", "source", "pattern"),
    [
        (
            {"a.parquet": parquet({"image": CELLS, "species": [0, 2, 1]})},
            "a.parquet",
            "has the columns species, and which one holds labels is not known",
        ),
        (
            {"labels.csv": META, "images/1.png": png(1)},
            "",
            r"labels\.csv has file names and labels .*, and is not read; set",
        ),
        ({"labels.csv": META, **FLAT}, "", r"labels\.csv has file names and labels .*, and is not read; set data="),
        ({"metadata.csv": "file_name,breed\n1.png,a\n", **FLAT}, "", "has the columns breed, and which one"),
        ({"metadata.csv": "file_name,label\n9.png,a\n", **FLAT}, "", "row 0 names '9.png', which is no image in"),
        ({"metadata.csv": "file_name,label\n../up.png,a\n", **FLAT}, "", "which is no image in"),
        ({"metadata.csv": "file_name,label\n1.png,a,b\n", **FLAT}, "", "row 2 has 3 fields for the 2 columns"),
        ({"metadata.csv": "name,label\n1.png,a\n", **FLAT}, "", "has the columns name, label; expected file_name"),
        ({"metadata.csv": "file_name,label\n1.png,\n", **FLAT}, "", "is an empty text in row 0"),
        ({"metadata.csv": META.encode("utf-16"), **FLAT}, "", "'utf-8' is expected, and .*metadata.csv is UTF-16"),
        ({"metadata.jsonl": "[" * 100_000, **FLAT}, "", "cannot be read as JSON: it is nested too deeply"),
        ({"test/1.png": png(1), "val/2.png": png(2)}, "", "has the splits test, validation and none named train"),
        (
            {"a.parquet": parquet({"image": CELLS, "label": [0, 2**40, 1]})},
            "a.parquet",
            r"labels span 0\.\.1099511627776; expected",
        ),
        (
            {"a.parquet": parquet({"image": CELLS, "label": pa.array([0, 2**64 - 1, 1], pa.uint64())})},
            "a.parquet",
            r"labels span 0\.\.1844",
        ),
        ({"a.parquet": parquet({"image": CELLS, "label": [0, -1, 1]})}, "a.parquet", r"labels span -1\.\.1"),
        (
            {"a.parquet": parquet({"image": CELLS, "label": [[0], [1], [1]]})},
            "a.parquet",
            "column label is list<.*int64>, or has gaps",
        ),
        (
            {"a.parquet": parquet({"image": [{"path": "../x.png"}]})},
            "a.parquet",
            r"only the path '\.\./x\.png'; expected the bytes",
        ),
        (
            {"a.parquet": parquet({"a": STRUCTS, "b": STRUCTS}, {"a": {"_type": "Image"}, "b": {"_type": "Image"}})},
            "a.parquet",
            r"image columns \['a', 'b'\]; rename",
        ),
        ({"a.tar": tar({"1.png": png(1), "1.cls": str(2**40)})}, "a.tar", r"labels span 1099511627776\.\."),
        ({"a.tar": tar({"1.png": png(1), "1.jpg": png(1)})}, "a.tar", "has the images png, jpg; expected one"),
        ({"a.tar": tar({"1.png": png(1), "1.cls": "3", "2.png": png(1)})}, "a.tar", "is NoneType, or has gaps"),
        ({"a.tar": tar(FLAT)[:1300]}, "a.tar", "is not a tar file that can be read: it is cut off before the mark"),
        ({"a.tar": tar(FLAT)[:1024]}, "a.tar", "is not a tar file that can be read: it is cut off before the mark"),
        ({"a.tar": tar(FLAT)[:1000]}, "a.tar", "is not a tar file that can be read: unexpected end of data"),
        ({"a.tar": tar({"1.png": png(1), "2.png": png(1), "1.cls": "3"})}, "a.tar", "its members do not lie together"),
        ({"a.tar": "no tar"}, "a.tar", "is not a tar file that can be read"),
        (
            {"1.png": "x", "2.png": "y", "3.png": png(3)},
            "",
            "1.png is not an image .*and 1 more images: .*2.png.*; mend or remove",
        ),
        ({"cat.heic": "x", "dog.heic": "y"}, "", r"holds no images .*; found 2 of \.heic"),
    ],
)
def test_what_is_refused(files: Any, source: str, pattern: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=pattern):
        load_images(make(tmp_path, files) / source)


def test_a_named_column_of_labels_is_taken_or_left(tmp_path: Path) -> None:
    data = parquet({"image": CELLS, "species": ["b", "a", "b"], "label": [0, 0, 0]})
    path = make(tmp_path, {"a.parquet": data}) / "a.parquet"
    assert names(load_images(path, label="species")) == ["b", "a", "b"]
    assert names(load_images(path, label="none")) is None
    with pytest.raises(DataError, match="has no column label=kind; expected one of species, label, or none"):
        load_images(path, label="kind")


def test_links_are_followed_and_end(tmp_path: Path) -> None:
    store = make(tmp_path / "store", {"1.png": png(1)})
    folder = make(tmp_path / "set", {"cat/2.png": png(2)})
    (folder / "dog").symlink_to(store)
    (folder / "cat" / "3.png").symlink_to(store / "1.png")
    (folder / "cat" / "loop").symlink_to(folder)
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "cat" / "pipe.png")
    found = load_images(folder)
    assert reds(found) == [2, 1, 1] and names(found) == ["cat", "cat", "dog"]
    assert found.findings.left_out == {
        "broken links or special files": ["cat/gone.png", "cat/pipe.png"],
        "links to folders that are read elsewhere": ["cat/loop"],
    }


def test_names_of_any_bytes_are_read_and_shown(tmp_path: Path) -> None:
    """A name that is not UTF-8 can be opened, and shown with escapes; a class needs a name that can be written."""
    folder = make(tmp_path / "cat", {"a b\n[bold]#1.png": png(1)})
    odd = os.fsdecode(b"caf\xe9.png")
    (folder / odd).write_bytes(png(2))
    (folder / odd.replace(".png", ".bak")).write_bytes(b"x")
    found = load_images(tmp_path)
    assert reds(found) == [1, 2]
    "\n".join(found.summary()).encode()
    (tmp_path / os.fsdecode(b"dog\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"dog\xe9") / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"the name of the class folder 'dog\\udce9' is not UTF-8; rename it"):
        load_images(tmp_path)


@pytest.mark.slow
def test_folders_in_folders_have_no_end_but_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deeper than Python can recurse; so deep a folder is removed from its end, which pytest does not."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    Path("1.png").write_bytes(png(1))
    try:
        assert reds(load_images(tmp_path)) == [1]
    finally:
        Path("1.png").unlink()
        for _ in range(1100):
            os.chdir("..")
            Path("d").rmdir()


def test_the_summary_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    files = {"cat/1.png": png(1), "dog/2.png": png(2, "L", (8, 6)), "dog/notes.txt": "x", ".git/config": "x"}
    found = list(load_images(make(tmp_path, files), size=4).summary())
    assert found == [
        f"data: {tmp_path}, a folder of images: 2 images",
        f"  labels: names of the folders in {tmp_path}",
        "  classes: 2 ('cat' 1, 'dog' 1)",
        "  sizes: 4 x 4 to 8 x 6 pixels (2 different)",
        "  modes: RGB 1, L 1",
        "  left out: 1 hidden (.git)",
        "  left out: 1 files .txt (dog/notes.txt)",
        "  used as: 4 x 4 pixels, RGB, cut to the square in their middle and resized",
    ]


def bomb(width: int) -> bytes:
    """A PNG whose header says that it is `width` pixels wide and high."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") * 2
    return bytes(data[:29]) + zlib.crc32(bytes(data[12:29])).to_bytes(4, "big") + bytes(data[33:])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", lambda: bomb(40_000)),
        ("x.parquet", lambda: parquet({"image": [bomb(40_000)]})),
        ("x.tar", lambda: tar({"1.png": bomb(40_000)})),
        ("train-images-idx3-ubyte", lambda: b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(name: str, content: Callable[[], bytes], tmp_path: Path) -> None:
    path = make(tmp_path, {name: content()})
    with pytest.raises(DataError, match=r"decompression bomb|GiB of memory"):
        load_images(path if name.endswith(("ubyte", "png")) else path / name)


def test_a_set_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARE", 1e-12)
    folder = make(tmp_path, {f"{i:03}.png": png() for i in range(3)})
    with pytest.raises(DataError, match=r"its images take .* GiB are free; set a smaller size"):
        load_images(folder)
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((100, 8, 8), np.uint8))
    with pytest.raises(DataError, match="GiB are free"):
        load_images(tmp_path / "x.npz")


def test_an_array_of_labels_by_another_name(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, label=np.array([1, 0]))
    assert names(load_images(tmp_path / "x.npz")) == ["1", "0"]
    np.savez(tmp_path / "y.npz", images=images, y=np.array([1, 0]))
    with pytest.raises(DataError, match="has the columns y, and which one holds labels is not known"):
        load_images(tmp_path / "y.npz")
    assert names(load_images(tmp_path / "y.npz", label="y")) == ["1", "0"]
    np.savez(tmp_path / "z.npz", images=images, labels=np.array([0, 2**40]))
    with pytest.raises(DataError, match=r"labels span 0\.\.1099511627776"):
        load_images(tmp_path / "z.npz")
