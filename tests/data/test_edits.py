"""Pictures with captions as the conditions of a run: folders and tables of them, their store, and their split."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_edits import drawn, png, write_edits, write_table

from redif_ray import config
from redif_ray.config import ConfigError
from redif_ray.data.conditions import Conditions, load_conditions
from redif_ray.data.pictures import PictureStore, PictureStoreError
from redif_ray.types import Edit

SIZE = (16, 24)


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return PictureStore(tmp_path / "pictures")


def load(store: PictureStore, source: Path | None, held_out: float = 0.0, column: str | None = None) -> Conditions:
    wanted = config.Conditions(source=None if source is None else str(source), held_out=held_out, column=column)
    return load_conditions(wanted, num_classes=None, captions=True, seed=0, keep=partial(store.keep, size=SIZE))


def test_a_folder_with_metadata(store: PictureStore, tmp_path: Path) -> None:
    found = load(store, write_edits(tmp_path / "data", 5))
    edits = [edit for edit in found.training if isinstance(edit, Edit)]
    assert [edit.caption for edit in edits[:3]] == ["make it night", "make it number 0", "make it night"]
    assert edits[0].picture == edits[1].picture != edits[2].picture
    assert len(list(store.folder.iterdir())) == 5
    assert store.read(edits[0].picture).shape == (3, *SIZE)
    assert found.notes == ("captions of pictures: 10; 10 train and evaluate",)
    assert Conditions.from_json(found.to_json()) == found
    assert load(store, tmp_path / "data" / "metadata.jsonl") == found


def test_texts_beside_pictures(store: PictureStore, tmp_path: Path) -> None:
    drawn(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("make it night\n")
    drawn(1).save(tmp_path / "b.png")  # without a text
    found = load(store, tmp_path)
    assert found.training == (Edit("make it night", store.keep(png(drawn(0)), "a", SIZE)),)
    assert any("images without a caption" in note for note in found.notes)


@pytest.mark.parametrize("inside", [False, True])
def test_parquet_with_the_bytes_of_pictures(store: PictureStore, tmp_path: Path, inside: bool) -> None:
    path = write_table(tmp_path / "train.parquet")
    found = load(store, tmp_path if inside else path)
    expected = tuple(Edit(f"make it number {i}", store.keep(png(drawn(i)), "a", SIZE)) for i in range(6))
    assert found.training == expected
    assert torch.equal(store.read(expected[2].picture), torch.tensor(list(drawn(2).getdata())).T.view(3, *SIZE) / 255)


def test_a_picture_is_held_out_with_all_its_captions(store: PictureStore, tmp_path: Path) -> None:
    found = load(store, write_edits(tmp_path / "data", 30), held_out=0.3)
    training, held_out = ({edit.picture for edit in part} for part in (found.training, found.held_out))
    assert not training & held_out and len(training) + len(held_out) == 30 and 3 <= len(held_out) <= 15
    assert len(found.training) == 2 * len(training)
    assert "make it night" in {edit.caption for edit in found.training} & {edit.caption for edit in found.held_out}


def test_repeated_rows_count_once(store: PictureStore, tmp_path: Path) -> None:
    folder = write_edits(tmp_path / "data", 2)
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text + text.replace("make it", "Make  it"))
    assert len(load(store, folder).training) == 4


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: None, "conditions.source is not set, and this teacher changes pictures; give a folder"),
        (lambda root: text(root / "a.txt", "a cat"), "holds captions alone; this teacher changes pictures"),
        (lambda root: text(root / "a.tar", ""), "a.tar is a tar shard; the pictures that captions change are read"),
        (lambda root: rows(root, {"caption": "a cat"}), "expected source_image or file_name, the picture that"),
        (lambda root: rows(root, {"caption": "a cat", "file_name": "b.png"}), "row 0 names 'b.png', which is no image"),
        (lambda root: rows(root, {"caption": "", "file_name": "a.png"}), "expected a text in every row"),
        (lambda root: broken(root), "metadata.jsonl row 0, a.png is not an image that can be read"),
    ],
)
def test_sources_that_are_no_edits(write: object, message: str, store: PictureStore, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    drawn(0).save(root / "a.png")
    with pytest.raises(ConfigError, match=message):
        load(store, write(root))  # type: ignore[operator]


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def rows(root: Path, *rows: dict[str, str]) -> Path:
    return text(root / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows)).parent


def broken(root: Path) -> Path:
    (root / "a.png").write_bytes(b"no image")
    return rows(root, {"caption": "a cat", "file_name": "a.png"})


def test_other_kinds_of_conditions_are_refused(store: PictureStore, tmp_path: Path) -> None:
    source = str(write_edits(tmp_path / "data", 2))
    for wanted, message in (
        (config.Conditions(kind="none"), "conditions.kind=none: this teacher changes pictures by captions; expected"),
        (config.Conditions(source=source, metadata=("tag",)), "conditions.metadata=.'tag'.: not read beside pictures"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_conditions(wanted, num_classes=None, captions=True, seed=0, keep=partial(store.keep, size=SIZE))


def test_a_lost_picture_is_named(store: PictureStore) -> None:
    name = store.keep(png(drawn(0)), "a", SIZE)
    store.path(name).write_bytes(b"x")
    with pytest.raises(PictureStoreError, match=rf"{name}.png cannot be read: .* delete it and start the run again"):
        store.read(name)
