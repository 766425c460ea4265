"""The check of a picture against its caption, whole and by kind, by what is in the picture and nothing learned.

What differs from the background falls into connected objects. An object's colour is that of most of its inner pixels;
its shape is the one whose drawing, of the same area and centre of mass, overlaps it most. An object that is like no
colour or no shape counts as a wrong one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor, tensor

from benchmarks.scenes.scenes import BACKGROUND, COLOURS, SHAPES, Scene, coverage

SEEN, INNER = 0.4, 0.6  # distance of a pixel's colour from the background from which it is an object's, and inside it
LEAST = 5  # pixels of an object; what is smaller is dirt
SAME_COLOUR = 0.7  # least share of the inner pixels that have the object's colour
OVERLAP = 0.75  # least intersection over union with a drawing of its shape
AREAS = {"circle": np.pi, "square": 4.0, "triangle": 2.0}  # of an object of half edge 1
KINDS = ("whole", "colour", "shape", "count", "pairs", "relation")
NAMES = tuple(COLOURS)
PALETTE = np.array([COLOURS[name] for name in NAMES], np.float32)
GREY = np.array(BACKGROUND, np.float32)


@dataclass(frozen=True, slots=True)
class Found:
    """An object in a picture: its colour and shape, None where it has none of these, and its centre of mass."""

    colour: str | None
    shape: str | None
    x: float
    y: float


def objects(picture: np.ndarray) -> list[Found]:
    """Return the objects in a picture [3, 32, 32], float in [0, 1]."""
    apart = picture.transpose(1, 2, 0) - GREY
    distance = np.linalg.norm(apart, axis=2)
    labels, _ = ndimage.label(distance > SEEN)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        if (labels[rows, columns] == number).sum() < LEAST:
            continue
        top, left = max(0, rows.start - 1), max(0, columns.start - 1)
        part = np.s_[top : rows.stop + 1, left : columns.stop + 1]
        found.append(_found(apart[part], distance[part], labels[part], number, top, left))
    return found


def _found(apart: np.ndarray, distance: np.ndarray, labels: np.ndarray, number: int, top: int, left: int) -> Found:
    """Return the object of a number in a part of a picture, with one pixel around it where the picture has it."""
    own = labels == number
    inner = own & (distance > INNER)
    seen = apart[inner if inner.any() else own] + GREY
    nearest = np.linalg.norm(seen[:, None] - PALETTE, axis=2).argmin(1)
    votes = np.bincount(nearest, minlength=len(NAMES))
    best = int(votes.argmax())
    colour = NAMES[best] if votes[best] >= SAME_COLOUR * len(nearest) else None
    towards = PALETTE[best] - GREY
    around = ndimage.binary_dilation(own) & ((labels == 0) | own)
    cover = (apart @ towards / (towards @ towards)).clip(0, 1) * around
    area = float(cover.sum())
    if area < 1:
        return Found(None, None, left + 0.5, top + 0.5)
    down, across = (np.indices(cover.shape) + 0.5).astype(np.float32)
    x, y = float((cover * across).sum() / area), float((cover * down).sum() / area)
    fits = {shape: _overlap(cover, shape, x, y, area) for shape in SHAPES}
    shape = max(fits, key=lambda name: fits[name])
    return Found(colour, shape if fits[shape] >= OVERLAP else None, left + x, top + y)


def _overlap(cover: np.ndarray, shape: str, x: float, y: float, area: float) -> float:
    """Return the intersection over union of a cover with the drawing of a shape of the same area and centre of mass."""
    half, (height, width) = float(np.sqrt(area / AREAS[shape])), cover.shape
    middle = y - half / 3 if shape == "triangle" else y  # its centre of mass lies below the middle of its box
    drawing = coverage(shape, x, middle, half, max(height, width))[:height, :width]
    return float(np.minimum(cover, drawing).sum() / np.maximum(cover, drawing).sum())


def verdict(picture: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Return whether a picture [3, 32, 32], float in [0, 1], is right, whole and by kind.

    colour, shape: the picture has those of the caption and no others. count: as many objects. pairs: colours and shapes
    are joined as in the caption. relation: all objects of the first group lie on its side of all of the second.
    whole: everything is right, with the count of each group.
    """
    found, groups = objects(picture), scene.groups
    pairs = Counter((each.colour, each.shape) for each in found)
    wanted = {group.pair: group.count for group in groups}
    relation = _related(found, scene)
    return {
        "whole": pairs == wanted and relation,
        "colour": {each.colour for each in found} == {group.colour for group in groups},
        "shape": {each.shape for each in found} == {group.shape for group in groups},
        "count": len(found) == scene.objects,
        "pairs": set(pairs) == set(wanted),
        "relation": relation,
    }


def _related(found: list[Found], scene: Scene) -> bool:
    if scene.second is None:
        return True
    first, second = ([o for o in found if (o.colour, o.shape) == group.pair] for group in scene.groups)
    if not first or not second:
        return False
    if scene.relation in ("left of", "right of"):
        ours, theirs = [o.x for o in first], [o.x for o in second]
    else:
        ours, theirs = [o.y for o in first], [o.y for o in second]
    if scene.relation in ("left of", "above"):
        return max(ours) < min(theirs)
    return min(ours) > max(theirs)


def right(student: Tensor, teacher: Tensor, conditions: tuple[str, ...]) -> Tensor:
    """Return 1 for each student's picture that its caption is right of, else 0, float32 [B]: a reward.

    student, teacher: images [B, 3, 32, 32] in [0, 1]. conditions: their captions.
    """
    pictures = student.detach().cpu().float().numpy()
    return tensor([float(verdict(p, Scene.of(c))["whole"]) for p, c in zip(pictures, conditions, strict=True)])
