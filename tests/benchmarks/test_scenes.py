"""The checker of scenes is exact: it calls right pictures right, and no picture after one edit of its caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.scenes.checker import right, verdict
from benchmarks.scenes.pictures import asked, captions, drawn
from benchmarks.scenes.scenes import COLOURS, COUNTS, RELATIONS, SHAPES, Group, Scene, every_scene, picture
from benchmarks.scenes.teacher import build_tokenizer

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SCENES = drawn(every_scene(), 150, seed=0)
PICTURES = [picture(scene, 0, index) for index, scene in enumerate(SCENES)]


def edits(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Yield each kind of edit that makes a caption wrong of its picture, with the edited scene."""
    first = scene.first
    others = [Group(first.count, colour, first.shape) for colour in COLOURS if colour != first.colour]
    yield from (("colour", replace(scene, first=group)) for group in others)
    others = [Group(first.count, first.colour, shape) for shape in SHAPES if shape != first.shape]
    yield from (("shape", replace(scene, first=group)) for group in others)
    yield "count", replace(scene, first=replace(first, count=len(COUNTS) + 1 - first.count))
    if scene.relation is not None:
        yield "relation", replace(scene, relation=OPPOSITE[scene.relation])


def test_right_pictures_are_called_right() -> None:
    for scene, image in zip(SCENES, PICTURES, strict=True):
        assert all(verdict(image, scene).values()), str(scene)


def test_no_picture_is_right_after_one_edit_of_its_caption() -> None:
    count = 0
    for scene, image in zip(SCENES, PICTURES, strict=True):
        for kind, edited in edits(scene):
            found = verdict(image, edited)
            assert not found["whole"], (str(scene), str(edited))
            if kind in ("count", "relation"):
                assert not found[kind] and found["colour"] and found["shape"]
            count += 1
    assert count > 900


def test_a_little_noise_changes_no_verdict() -> None:
    draws = np.random.default_rng(1)
    for scene, image in zip(SCENES, PICTURES, strict=True):
        noisy = (image + 0.05 * draws.normal(size=image.shape)).clip(0, 1).astype(np.float32)
        assert verdict(noisy, scene)["whole"]


def test_what_is_no_shape_is_wrong() -> None:
    """A square with a bite of a quarter is neither a square nor anything else of the grammar."""
    scene = Scene(Group(1, "red", "square"))
    image = picture(scene, 0, 3)
    rows, columns = np.nonzero(image[1] < 0.5)
    middle, centre = (rows.min() + rows.max() + 1) // 2, (columns.min() + columns.max() + 1) // 2
    image[:, middle:, centre:] = 0.9
    assert not verdict(image, scene)["shape"] and not verdict(image, scene)["whole"]
    assert not verdict(np.full((3, 32, 32), 0.9, np.float32), scene)["count"]


def test_captions_are_read_as_they_are_written() -> None:
    every = every_scene()
    assert [Scene.of(str(scene)) for scene in every] == every and len({*map(str, every)}) == len(every)
    assert str(Scene(Group(2, "red", "circle"), "left of", Group(1, "blue", "square"))) == (
        "two red circles left of one blue square"
    )
    for text in ("two red circle", "one red circles", "three red circles", "red circle", "one pink circle", ""):
        with pytest.raises(ValueError, match="is no group"):
            Scene.of(text)


def test_held_out_compositions_share_no_group_with_the_others() -> None:
    trained, held = captions(held_out=False), captions(held_out=True)
    seen = {group for scene in trained for group in scene.groups}
    assert all(any(group not in seen for group in scene.groups) for scene in held)
    assert {group.colour for group in seen} == {*COLOURS} and {group.shape for group in seen} == {*SHAPES}
    assert {scene.relation for scene in trained} == {None, *RELATIONS} and len(trained) + len(held) == 2136


def test_half_of_what_is_held_out_is_never_asked() -> None:
    wider, never = {*asked()}, [scene for scene in every_scene() if scene.never_asked]
    assert wider > {*captions(held_out=False)} and not wider & {*never} and len(wider) + len(never) == 2136
    assert {*never} < {*captions(held_out=True)} and 400 < len(never) < 600
    assert not {g for scene in wider for g in scene.groups} & {g for s in never for g in s.groups if g.never_asked}


def test_the_reward_is_the_verdict() -> None:
    images = torch.from_numpy(np.stack(PICTURES[:4]))
    own = tuple(str(scene) for scene in SCENES[:4])
    assert right(images, images, own).tolist() == [1.0] * 4
    edited = tuple(str(next(edits(scene))[1]) for scene in SCENES[:4])
    assert right(images, images, edited).tolist() == [0.0] * 4


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for scene in every_scene():
        assert len(tokenizer.tokenize(str(scene))) == len(str(scene).split(" "))
    assert len(tokenizer) < 120
