"""Small sets of images in each layout, how commands read them, and what must be so of what they read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from image_files import parquet, png, tar
from rich.console import Console

from redif_ray.api import own_images
from redif_ray.classifiers import training as judges
from redif_ray.classifiers.config import ClassifierConfig
from redif_ray.config import load
from redif_ray.data.images import ImageSet
from redif_ray.evaluation.own_reference import read_reference, write_reference
from redif_ray.job.preflight import check_judge
from redif_ray.models.classifier import Classifier
from redif_ray.teacher.config import TeacherConfig

CLASSES = ("cat", "dog", "eel")
LEVELS = {20 * i + 10: CLASSES[i % 3] for i in range(9)}  # the grey of an image, which tells it, and its class
ROWS = [{"file_name": f"{level}.png", "label": name} for level, name in LEVELS.items()]
FLAT = {f"{level}.png": png(level, "L") for level in LEVELS}
NAMED = {"label": {"_type": "ClassLabel", "names": list(CLASSES)}, "image": {"_type": "Image"}}
NUMBERED = {"image": list(FLAT.values()), "label": [CLASSES.index(name) for name in LEVELS.values()]}


class Wrong(Exception):
    """The error of an oracle: a reader gave other rows than the files hold."""


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def csv_of(rows: list[dict[str, Any]], mark: str = ",") -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(stream, columns, delimiter=mark, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


@cache
def layouts() -> dict[str, tuple[dict[str, bytes | str], str]]:
    """The files of a set in each layout, and the path in them that is given as the data."""
    pixels = np.stack([np.full((4, 4), level, np.uint8) for level in LEVELS])
    labels = np.array(NUMBERED["label"], np.uint8)
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS)
    folders = {f"{name}/{level}.png": FLAT[f"{level}.png"] for level, name in LEVELS.items()}
    members = {f"{level}.png": data for level, data in zip(LEVELS, FLAT.values(), strict=True)}
    classes = {f"{level}.cls": name for level, name in LEVELS.items()}
    shards = {
        f"data/{split}-0000{i}-of-00002.parquet": parquet(NUMBERED, NAMED)
        for i in (0, 1)
        for split in ("train", "test")
    }
    return {
        "class folders": (folders, ""),
        "splits": ({f"{split}/{name}": data for name, data in folders.items() for split in ("train", "test")}, ""),
        "flat": (FLAT, ""),
        "metadata.jsonl": ({**FLAT, "metadata.jsonl": jsonl}, ""),
        "metadata.csv": ({**FLAT, "metadata.csv": csv_of(ROWS)}, ""),
        "table": ({**FLAT, "list.tsv": csv_of(ROWS, "\t")}, "list.tsv"),
        "parquet": ({"a.parquet": parquet(NUMBERED, NAMED)}, "a.parquet"),
        "shards": (shards, ""),
        "tar": ({"a.tar": tar(dict(sorted((members | classes).items())))}, "a.tar"),
        "idx": (
            {
                "train-images-idx3-ubyte.gz": gzip.compress(idx(pixels)),
                "train-labels-idx1-ubyte": idx(labels),
                "t10k-images.idx3-ubyte": idx(pixels),
                "t10k-labels.idx1-ubyte": idx(labels),
            },
            "",
        ),
        "npz": ({"a.npz": npz(images=pixels, labels=labels)}, "a.npz"),
    }


def read(source: Path, chance: random.Random, root: Path, **keys: Any) -> ImageSet:
    """Read images as one of the three commands does that take them."""
    size = chance.choice((4, 4, 4, None, 1, 7))
    which = chance.choice(("teacher", "teacher", "judge", "reference"))
    if which == "judge":
        return judges.read_images(ClassifierConfig(data=str(source), out=str(root / "no"), size=size, batch=2, **keys))[
            0
        ]
    if which == "reference":
        return judge_of(source, root)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"))
    return own_images.look_at(TeacherConfig(data=str(source), out=str(root / "no"), size=size, **keys), console)


def judge_of(source: Path, root: Path) -> ImageSet:
    """Make a judge's reference images; what was written must be read back by the check before a run."""
    judge = root / "judge"
    (judge / "reference.parquet").unlink(missing_ok=True)
    if not judge.exists():
        Classifier("conv", "judge", (1, 4, 4), CLASSES).save(judge)
    images = read_reference(str(source), judge)
    write_reference(images, judge)
    if len(images) >= 12:
        check_judge(load("smoke", [f"evaluation.judge={judge}", "evaluation.held_out=12"]), (1, 4, 4), len(images))
    return images


def check_labels(images: ImageSet, truth: dict[int, set[str]]) -> None:
    """Raise Wrong where an image of one grey has another class than those it was given."""
    if images.labels is None:
        return
    for image, label in zip(images.images, images.labels, strict=True):
        level, name = int(image[0, 0, 0]), images.classes[label]
        if image.min() == image.max() and name not in truth.get(level, {name}):
            raise Wrong(f"image {level} has the class {name!r}, and is of {truth[level]}")


def check_all_told(folder: Path, images: ImageSet) -> None:
    """Raise Wrong where a file is neither read nor said to be left out; links to folders are not looked at."""
    there = 0
    for place, folders, files in os.walk(folder):
        if any((Path(place) / name).is_symlink() for name in folders) or any("metadata" in name for name in files):
            return
        there += len(files) + sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
    taken = images.findings.sizes.total()
    told = sum(map(len, images.findings.left_out.values()))
    if there != taken + told:
        raise Wrong(f"{there} files, of which {taken} are read and {told} left out: {images.findings.left_out}")
