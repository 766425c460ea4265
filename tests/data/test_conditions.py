from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redif_ray.config import ConfigError, load
from redif_ray.data.conditions import Conditions, load_conditions, plain, share, split
from redif_ray.diffusion.noise import Stream

CAPTIONS = [f"a picture of {i}" for i in range(200)]
EVALUATED = (Stream.HELD_OUT, Stream.REFERENCE, Stream.DIVERSITY)
OTHERS = [stream for stream in Stream if stream not in EVALUATED]


def conditions(*overrides: str, classes: int | None = None, captions: bool = True) -> Conditions:
    config = load(None, [f"conditions.{o}" for o in overrides])
    return load_conditions(config.conditions, num_classes=classes, captions=captions, seed=config.run.seed)


@pytest.mark.parametrize(
    ("override", "classes", "expected"),
    [
        ("kind=auto", 3, [0, 1, 2, 0]),
        ("kind=class", 3, [0, 1, 2, 0]),
        ("kind=auto", None, [None] * 4),
        ("kind=none", 3, [None] * 4),
        ("classes=[2, 0]", 3, [2, 0, 2, 0]),
    ],
)
@pytest.mark.parametrize("stream", [Stream.TRAIN, Stream.HELD_OUT])
def test_classes_in_turn(override: str, classes: int | None, expected: list[int | None], stream: Stream) -> None:
    found = conditions(override, classes=classes, captions=False)
    assert [found.of(stream, g) for g in range(4)] == expected


@pytest.mark.parametrize(
    ("overrides", "classes", "pattern"),
    [
        (["kind=class"], None, "conditions.kind=class: .* has no classes; expected auto or none"),
        (["kind=text"], None, "conditions.kind=text: this teacher takes no captions; expected auto or none"),
        (["kind=text"], 3, "conditions.kind=text: this teacher takes no captions; expected auto or class"),
        (["classes=[1]"], None, r"conditions.classes=\[1\]: the model is sampled without classes"),
        (["kind=none", "source=x"], 10, "conditions.source=x: the model is sampled without conditions"),
        (["kind=none", "classes=[1]"], 10, r"classes=\[1\]: .* set conditions.kind=class"),
        (["classes=[1, 10, -1]"], 10, r"conditions.classes: \[10, -1\] are not classes .*; expected values in 0..9"),
    ],
)
def test_conditions_that_the_teacher_does_not_have(overrides: list[str], classes: int | None, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        conditions(*overrides, classes=classes, captions=False)


def test_captions_have_no_classes() -> None:
    with pytest.raises(ConfigError, match=r"conditions.classes=\[1\]: a text-to-image teacher has no classes"):
        conditions("classes=[1]")


def test_the_evaluation_alone_draws_what_is_held_out() -> None:
    found = split(CAPTIONS, 0.25, seed=0)
    apart = {c for c in CAPTIONS if share(c) < 0.25}
    assert 20 < len(apart) < 80
    for stream in Stream:
        drawn = {found.of(stream, g) for g in range(300)}
        assert drawn == (apart if stream in EVALUATED else set(CAPTIONS) - apart)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=30, unique_by=plain),
    st.integers(0, 2**32),
)
def test_the_split_depends_on_the_caption_alone(captions: list[str], seed: int) -> None:
    """Other captions, another order, another seed, repeats: a caption stays on its side."""
    try:
        found = split([*captions, *captions[:7]], 0.4, seed)
    except ConfigError:  # all on one side
        return
    assert sorted([*found.training, *found.held_out], key=str) == sorted(captions)
    assert all((share(c) < 0.4) == (c in found.held_out) for c in captions)


def test_share_is_the_published_hash() -> None:
    """By another program."""
    import subprocess

    digest = subprocess.run(["sha256sum"], input=b"emoji", capture_output=True, check=True).stdout[:16]
    assert share("emoji") == int(digest, 16) / 2**64


@pytest.mark.slow
def test_every_epoch_has_each_caption_once_in_an_order_of_its_own() -> None:
    found = split(CAPTIONS, 0.1, seed=3)
    n = len(found.training)
    epochs = [[found.of(Stream.TRAIN, g) for g in range(e * n, (e + 1) * n)] for e in range(3)]
    assert all(Counter(epoch) == Counter(found.training) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3 and list(found.training) not in epochs
    assert epochs[0] != [split(CAPTIONS, 0.1, seed=4).of(Stream.TRAIN, g) for g in range(n)]
    assert epochs[0] != [found.of(Stream.VALIDATION, g) for g in range(n)]
    assert epochs[2][5] == split(CAPTIONS, 0.1, seed=3).of(Stream.TRAIN, 2 * n + 5)


def test_nothing_held_out_draws_all_for_both() -> None:
    found = split(CAPTIONS[:3], 0.0, seed=0)
    assert {found.of(s, g) for s in (Stream.TRAIN, Stream.HELD_OUT) for g in range(3)} == set(CAPTIONS[:3])


@pytest.mark.parametrize("held_out", [1e-9, 0.999999])
def test_a_split_without_one_side_is_refused(held_out: float) -> None:
    with pytest.raises(ConfigError, match=r"conditions.held_out=.* of 3 captions leaves .*give more captions"):
        split(CAPTIONS[:3], held_out, seed=0)


def test_the_shipped_prompts_are_the_default() -> None:
    found = conditions()
    both = [*found.training, *found.held_out]
    assert len(both) >= 100 and len(found.held_out) >= 8 and all(isinstance(c, str) and len(c) > 10 for c in both)


def test_json_holds_all_of_them() -> None:
    for found in (split(["ein Gruß", "日本 \n", *CAPTIONS], 0.1, seed=5), Conditions((None,), (None,))):
        assert Conditions.from_json(found.to_json()) == found


def write(path: Path, rows: list[Any], column: str = "caption") -> Path:
    if path.suffix == ".txt":
        path.write_text("\n\n".join(map(str, rows)) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": i, column: row}) + "\n" for i, row in enumerate(rows)))
    else:
        pq.write_table(pa.table({"id": list(range(len(rows))), column: rows}), path)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_captions_from_a_file(name: str, tmp_path: Path) -> None:
    found = conditions(f"source={write(tmp_path / name, CAPTIONS)}", "held_out=0")
    assert list(found.training) == CAPTIONS


@pytest.mark.parametrize("column", ["text", "prompt"])
def test_other_columns(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", CAPTIONS, column)
    assert list(conditions(f"source={path}", "held_out=0").training) == CAPTIONS
    odd = write(tmp_path / "b.jsonl", CAPTIONS, "Beschreibung")
    with pytest.raises(ConfigError, match=r"has the columns .*Beschreibung.*expected caption or text or prompt, or co"):
        conditions(f"source={odd}")
    assert list(conditions(f"source={odd}", "column=Beschreibung", "held_out=0").training) == CAPTIONS
    with pytest.raises(ConfigError, match="expected nothing_like_it"):
        conditions(f"source={odd}", "column=nothing_like_it")


def test_several_captions_a_row_count_each(tmp_path: Path) -> None:
    path = write(tmp_path / "coco.parquet", [CAPTIONS[:5], CAPTIONS[5:8]])
    assert list(conditions(f"source={path}", "held_out=0").training) == CAPTIONS[:8]


def test_folders_and_uris(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(12):
        (images / f"{i:02}.png").touch()  # a text counts beside an image of its name
        (images / f"{i:02}.txt").write_text(f"{CAPTIONS[i]}\n")
    assert list(conditions(f"source={images}", "held_out=0").training) == CAPTIONS[:12]
    write(images / "metadata.jsonl", CAPTIONS[:4], "text")  # says more of a folder than the texts in it
    assert list(conditions(f"source={images}", "held_out=0").training) == CAPTIONS[:4]
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "1.parquet", CAPTIONS[4:6])
    write(parts / "0.parquet", CAPTIONS[:4])
    assert list(conditions(f"source={parts}", "held_out=0").training) == CAPTIONS[:6]
    uri = f"file://{parts / '1.parquet'}"
    assert list(conditions(f"source={uri}", "held_out=0").training) == CAPTIONS[4:6]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_labels_from_a_file_keep_their_shares(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [2, 2, 2, 0], "label")
    found = conditions(f"source={path}", classes=3, captions=False)
    assert Counter(found.of(Stream.TRAIN, g) for g in range(40)) == {2: 30, 0: 10}
    with pytest.raises(ConfigError, match=rf"conditions.source={path}: \[2\] are not classes of the teacher"):
        conditions(f"source={path}", classes=2, captions=False)
    with pytest.raises(ConfigError, match=r"conditions.classes=\[1\]: conditions.source names the classes; remove"):
        conditions(f"source={path}", "classes=[1]", classes=3, captions=False)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.txt", b"", "holds nothing; expected a text"),
        ("a.txt", b"\xff\xfe", "cannot be read: 'utf-8'"),
        ("a.docx", b"caption\na\n", "expected a folder, or a file that ends in .txt, .parquet, .jsonl"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.jsonl", b'{"caption": "a"}\n{"caption": \n', "cannot be read"),
        ("a.jsonl", b'{"caption": "a"}\n{"caption": null}\n', "holds None; expected a text in every row"),
        ("a.jsonl", b'{"caption": 3}\n', "holds 3; expected a text in every row"),
        ("a.jsonl", b'{"caption": ""}\n', "holds ''; expected a text in every row"),
        ("folder/a.png", b"", "is a folder without .parquet"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, pattern: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = path.parent if "/" in name else path
    with pytest.raises(ConfigError, match=rf"conditions.source={source} ?:? ?.*{pattern}"):
        conditions(f"source={source}")


def test_captions_for_a_teacher_of_classes_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"caption": "a cat"}\n')
    with pytest.raises(ConfigError, match="the teacher draws classes, and these are captions"):
        conditions(f"source={tmp_path / 'a.jsonl'}", classes=3, captions=False)


def test_a_list_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"conditions.source=emojis: no such file .*a shipped list \(.*prompts"):
        conditions("source=emojis")
    with pytest.raises(ConfigError, match=r"conditions.source=file:///nowhere/a.parquet cannot be read"):
        conditions("source=file:///nowhere/a.parquet")
