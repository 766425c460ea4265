"""Sets of images and captions that nobody meant: each is read as it is, or ends in one clear error, within limits."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from damage import ODD_NAMES, damaged, spoil
from image_files import make, parquet
from image_sets import (
    CLASSES,
    FLAT,
    LEVELS,
    NAMED,
    NUMBERED,
    ROWS,
    Wrong,
    check_all_told,
    check_labels,
    csv_of,
    idx,
    layouts,
    npz,
    read,
)
from outcomes import Given, Tally, mutated, of_command, tried
from PIL import Image

from redif_ray.models.classifier import Classifier

pytestmark = pytest.mark.long


def a_spoilt_set(chance: random.Random, root: Path) -> Given:
    """A set in any layout, in whose files and folders one to three things happened."""
    name = chance.choice(sorted(layouts()))
    files, source = layouts()[name]
    folder = make(root / "set", files)
    done = [spoil(folder, chance) for _ in range(chance.randint(1, 3))]
    keys = {"label": chance.choice(("none", "label", "x"))} if chance.random() < 0.2 else {}

    def call() -> None:
        images = read(folder / source, chance, root, **keys)
        check_labels(images, {level: {label} for level, label in LEVELS.items()} if name == "tar" else {})
        if name in ("class folders", "flat"):
            check_all_told(folder, images)

    return [name, done, keys], call


def an_image(chance: random.Random, root: Path) -> Given:
    """An image of an odd kind, mode, depth or size, as a rule with damaged bytes, among two that are whole."""
    kind = chance.choice(
        ("PNG", "PNG", "JPEG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "SGI", "JPEG2000")
    )
    mode = chance.choice(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB"))
    size = chance.choice(((4, 4), (4, 4), (1, 1), (1, 300), (16, 5)))
    options: dict[str, Any] = {}
    if chance.random() < 0.5:
        exif = Image.Exif()
        exif[chance.choice((274, 274, 282, 34665, 700))] = chance.choice((0, 1, 3, 6, 8, 9, 2**16 - 1, "6", b"\xff"))
        options["exif"] = exif
    if chance.random() < 0.2:
        options["icc_profile"] = damaged(b"\0" * 36 + b"acsp" + b"\0" * 100, chance)
    if chance.random() < 0.2 and kind in ("PNG", "GIF"):
        options["transparency"] = chance.choice((0, 1, 255, b"\0\xff", (1, 2, 3)))
    if chance.random() < 0.1 and kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options |= {"save_all": True, "append_images": [Image.new("RGB", (9, 2))]}
    stream = io.BytesIO()
    try:
        Image.frombytes(mode, size, chance.randbytes(10**4)[: len(Image.new(mode, size).tobytes())]).save(
            stream, kind, **options
        )
    except Exception:  # a kind that cannot hold such an image
        stream.write(FLAT["10.png"])
    data = stream.getvalue()
    if chance.random() < 0.7:
        data = damaged(data, chance)
    if chance.random() < 0.1 and kind == "PNG":
        data = vast(data, chance)
    folder = make(root / "set", {"a.png": FLAT["10.png"], "b.png": data, "c.png": FLAT["30.png"]})

    def call() -> None:
        images = read(folder, random.Random(chance.choice((1, 2, 3))), root)
        if images.findings.sizes.total() != 3:
            raise Wrong(f"{images.findings.sizes.total()} of 3 images")

    return [kind, mode, size, options], call


def vast(data: bytes, chance: random.Random) -> bytes:
    """Return a PNG whose header, which is valid, says that it is large."""
    head = (
        b"IHDR"
        + struct.pack(">II", chance.choice((1, 5, 13000, 2**31 - 1)), chance.choice((13000, 2**16)))
        + data[24:29]
    )
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def a_table(chance: random.Random, root: Path) -> Given:
    """A table beside images, or with images inside, with one to three mutations of its rows or its bytes."""
    rows: Any = ROWS if chance.random() < 0.7 else [{**row, "split": chance.choice(("train", "test"))} for row in ROWS]
    for _ in range(chance.randint(0, 2)):
        rows = mutated(rows, chance)
    whole = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    suffix = chance.choice((".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet") if whole else (".jsonl", ".json"))
    encoding = chance.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "utf-16-le", "latin-1"))
    if suffix == ".parquet":
        data = parquet_of(rows)
    elif suffix in (".csv", ".tsv"):
        data = csv_of(rows, chance.choice(",,;|") if suffix == ".csv" else "\t").encode(encoding, "replace")
    elif suffix == ".jsonl" and isinstance(rows, list):
        data = chance.choice(("\n", "\r\n", "\n\n")).join(map(json.dumps, rows)).encode(encoding)
    else:
        data = json.dumps(rows).encode(encoding)
    changed = chance.random() < 0.3
    name = chance.choice(("metadata", "metadata", "list")) + suffix
    folder = make(root / "set", {**FLAT, name: damaged(data, chance) if changed else data})
    source = folder / name if name.startswith("list") else folder
    truth: dict[int, set[str]] = {level: set() for level in LEVELS}
    for row in rows if whole else ():
        file, label = row.get("file_name"), row.get("label")
        if isinstance(file, str) and file in FLAT and isinstance(label, str | int):
            truth[int(Path(file).stem)].add(str(label).strip())

    def call() -> None:
        images = read(source, chance, root)
        if not changed and images.findings.labels == "column label":
            check_labels(images, {level: names for level, names in truth.items() if names})

    return [name, encoding, changed, rows], call


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    try:
        return parquet(pa.Table.from_pylist(rows).to_pydict())
    except (pa.ArrowException, OverflowError, ValueError, TypeError):  # of several types
        return parquet(
            {"file_name": [str(row.get("file_name")) for row in rows], "label": [str(row.get("label")) for row in rows]}
        )


def a_parquet(chance: random.Random, root: Path) -> Given:
    """A Parquet file of images, with other columns, cells, types or metadata than it should have, or damaged."""
    columns: dict[str, Any] = dict(NUMBERED)
    features = mutated(NAMED, chance) if chance.random() < 0.5 else NAMED
    if chance.random() < 0.3:
        columns["image"] = [{"bytes": data, "path": None} for data in FLAT.values()]
    if chance.random() < 0.3:
        columns["label"] = [chance.choice((0, 1, 2, 3, -1, None, 2**40)) for _ in LEVELS]
    if chance.random() < 0.3:
        cell = chance.choice((None, b"", b"x", damaged(FLAT["10.png"], chance)))
        columns["image"] = [cell, *columns["image"][1:]] if isinstance(columns["image"][1], bytes) else columns["image"]
    if chance.random() < 0.3:
        other = chance.choice(("labels", "class", "fine_label", "img", "split", "x", "", "Image", "label.a"))
        columns[other] = columns.pop(chance.choice(list(columns))) if chance.random() < 0.6 else [1] * len(LEVELS)
    if chance.random() < 0.2 and "label" in columns:
        kind = chance.choice((pa.int8(), pa.uint64(), pa.float64(), pa.string(), pa.bool_(), pa.timestamp("s")))
        try:
            columns["label"] = pa.array(columns["label"], pa.int64()).cast(kind, safe=False)
        except pa.ArrowException:
            columns["label"] = [[1, 2]] * len(LEVELS)
    data = parquet(columns, features)
    changed = chance.random() < 0.3
    folder = make(root / "set", {"a.parquet": damaged(data, chance) if changed else data})

    def call() -> None:
        images = read(folder / "a.parquet", chance, root)
        if not changed and images.findings.sizes.total() != len(LEVELS) and not images.findings.splits:
            raise Wrong(f"{images.findings.sizes.total()} of {len(LEVELS)} images")
        if not changed and features is NAMED and columns.get("label") is NUMBERED["label"]:
            check_labels(images, {level: {name} for level, name in LEVELS.items()})

    return [{k: v[:2] for k, v in columns.items()}, features, changed], call


def a_shard(chance: random.Random, root: Path) -> Given:
    """A tar shard whose members have odd names, kinds, sizes and contents, or that is damaged."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=chance.choice(("w", "w", "w:gz")), format=chance.choice((1, 2))) as shard:
        for level, name in LEVELS.items():
            about = chance.choice((".cls", ".cls", ".json"))
            label = name if about == ".cls" else json.dumps({"label": name})
            if chance.random() < 0.03:
                label = json.dumps(mutated({"label": name}, chance))
            members = [(f"{level}.png", FLAT[f"{level}.png"]), (f"{level}{about}", label.encode("utf-8", "replace"))]
            for path, content in members:
                info = tarfile.TarInfo(path)
                info.size = len(content)
                if chance.random() < 0.05:
                    odd = chance.choice(ODD_NAMES)
                    info.name = chance.choice(
                        (f"{odd}.png", f"{odd}/{path}", f"../{path}", f"/{path}", odd, f"{path}.png")
                    )
                if chance.random() < 0.03:
                    info.type = chance.choice(
                        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, b"Z")
                    )
                    info.linkname = chance.choice(("/etc/passwd", "../x", path))
                if chance.random() < 0.01:
                    info.size = chance.choice((0, 1, 2**20, 2**32))
                body = None if info.size == 2**32 else io.BytesIO(content.ljust(info.size, b"\0"))
                shard.addfile(info, body)
    data = stream.getvalue()
    if chance.random() < 0.4:
        data = damaged(data, chance)
    folder = make(root / "set", {"a.tar": data})
    return [len(data)], lambda: read(folder / "a.tar", chance, root)


def an_array(chance: random.Random, root: Path) -> Given:
    """An npz, or IDX files, of odd types, shapes and labels, whose headers say other sizes, or damaged."""
    shape = chance.choice(
        ((9, 4, 4), (9, 4, 4, 3), (9, 3, 4, 4), (9, 1, 4, 4), (0, 4, 4), (9, 0, 4), (9, 4), (3, 3, 3, 3), ())
    )
    kind = chance.choice(("u1", "u1", "u1", "i8", "f4", "?", "S3", "U2", "O", "c8", "M8[s]", ">u2", [("a", "u1")]))
    labels = np.array([chance.choice((0, 1, 2, 3, 255)) for _ in range(chance.choice((9, 9, 9, 8, 0)))])
    pixels = np.zeros(shape, kind) if chance.random() < 0.7 else np.full((9, 4, 4), 7, np.uint8)
    if chance.random() < 0.5:
        name, files = (
            "a.npz",
            {
                "a.npz": npz(
                    **{
                        "images": pixels,
                        chance.choice(("labels", "y", "label")): labels.astype(
                            chance.choice(("i8", "u1", "i2", "f8", "?", "O", "u8"))
                        ),
                    }
                )
            },
        )
        files = {name: damaged(files[name], chance) if chance.random() < 0.4 else files[name]}
    else:
        head = chance.choice((None, None, 2**31, 2**32 - 1, 0, 8))
        images = idx(
            pixels.astype(np.uint8, copy=False) if pixels.dtype.kind in "u?bi" else np.zeros((9, 4, 4), np.uint8)
        )
        if head is not None:
            images = images[:4] + struct.pack(">I", head) + images[8:]
        data = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": idx(labels.astype(np.uint8))}
        name, files = "", {k: damaged(v, chance) if chance.random() < 0.2 else v for k, v in data.items()}
        if chance.random() < 0.3:
            files = {
                f"{k}.gz": damaged(gzip.compress(v), chance) if chance.random() < 0.3 else gzip.compress(v)
                for k, v in files.items()
            }
    folder = make(root / "set", files)

    def call() -> None:
        images = read(folder / name, chance, root)
        if images.findings.labels and len(labels) < len(images):
            raise Wrong(f"{len(labels)} labels for {len(images)} images")

    return [shape, kind, labels.tolist(), list(files)], call


MAKERS: dict[Any, int] = {
    a_spoilt_set: 700,
    an_image: 700,
    a_table: 600,
    a_parquet: 450,
    a_shard: 450,
    an_array: 300,
}


@pytest.mark.parametrize("make_one", MAKERS, ids=lambda maker: maker.__name__)
def test_a_set_that_nobody_meant_ends_clearly(make_one: Any, tmp_path: Path) -> None:
    tried(make_one, MAKERS[make_one], tmp_path)


def test_a_command_on_a_set_that_nobody_meant_ends_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tally = Tally("commands on sets")
    for seed in range(150):
        root, chance = tmp_path / str(seed), random.Random(seed)
        root.mkdir()
        given, _ = chance.choice((a_spoilt_set, a_spoilt_set, an_image, a_table, a_parquet, a_shard, an_array))(
            chance, root
        )
        Classifier("conv", "judge", (1, 4, 4), CLASSES).save(root / "judge")
        found = sorted((root / "set").iterdir())
        data = str(found[0] if len(found) == 1 and chance.random() < 0.9 else root / "set")
        out = f"out={root / 'out'}"
        words = chance.choice(
            (
                ["train-teacher", "teacher_fashion_mnist", f"data={data}", out, "size=4", "--dry-run"],
                ["train-teacher", "teacher_fashion_mnist", f"data={data}", out, "--dry-run"],
                ["make-reference", data, str(root / "judge")],
                ["train-judge", f"data={data}", out, "size=4", "batch=2", "epochs=1"],
            )
        )
        tally.add(f"seed {seed}: {given} {words}", of_command(*words))
        shutil.rmtree(root)
    tally.check()
