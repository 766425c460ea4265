"""Scenes of coloured shapes, whose captions can be checked: the grammar, what is held out, and the pictures.

A caption names one or two groups of equal objects and where the first lies, "two red circles left of one blue square".
It is right of a picture that has these objects and no others, the first group wholly on that side of the second.
GenEval (Ghosh et al., arXiv 2310.11513) asks the same of photographs, with a detector in place of an exact check.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

SIZE = 32  # edge in pixels
COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.1, 0.2, 0.9), "yellow": (0.95, 0.85, 0.1)}
BACKGROUND = (0.9, 0.9, 0.9)
SHAPES = ("circle", "square", "triangle")
COUNTS = ("one", "two")  # of the objects of a group
RELATIONS = ("left of", "right of", "above", "below")
HALF_EDGES = (3.2, 4.6)  # least and largest half edge of an object, or radius, in pixels
GAP = 1.6  # least distance of the boxes around two objects, in pixels
MARGIN = 0.6  # least distance of an object from the edge and from the line between two groups, in pixels
SPLIT = (13.0, 19.0)  # where the line between two groups may lie, in pixels
FINE = 4  # points of a pixel along each edge, whose mean is its colour
HELD_OUT_PAIRS = (("blue", "triangle"), ("yellow", "circle"))  # colours and shapes that no training caption joins
HELD_OUT_GROUPS = ((2, "green", "square"), (2, "red", "triangle"))  # counts that no training caption gives this pair
NEVER_ASKED = (HELD_OUT_PAIRS[1], HELD_OUT_GROUPS[1])  # of these no student is asked, even where a verdict is enough


@dataclass(frozen=True, slots=True)
class Group:
    """Equal objects: their number, colour and shape."""

    count: int
    colour: str
    shape: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def held_out(self) -> bool:
        return self.pair in HELD_OUT_PAIRS or (self.count, *self.pair) in HELD_OUT_GROUPS

    @property
    def never_asked(self) -> bool:
        return self.pair in NEVER_ASKED or (self.count, *self.pair) in NEVER_ASKED

    def __str__(self) -> str:
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{'s' if self.count > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of a caption. relation: where the first group lies, seen from the second; None without a second."""

    first: Group
    relation: str | None = None
    second: Group | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def objects(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def held_out(self) -> bool:
        """True where no training caption has one of the groups, so that a right picture takes what was never seen."""
        return any(group.held_out for group in self.groups)

    @property
    def never_asked(self) -> bool:
        """True where a group is held out from students, too, that are asked for more than the teacher was shown."""
        return any(group.never_asked for group in self.groups)

    def __str__(self) -> str:
        return str(self.first) if self.second is None else f"{self.first} {self.relation} {self.second}"

    @classmethod
    def of(cls, caption: str) -> Scene:
        """Read a caption. Raises ValueError for a text that is none."""
        for relation in RELATIONS:
            first, found, second = caption.partition(f" {relation} ")
            if found:
                return cls(_group(first), relation, _group(second))
        return cls(_group(caption))


@dataclass(frozen=True, slots=True)
class Drawn:
    """An object in a picture: colour, shape, centre of the box around it and half its edge, in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    half: float


def _group(text: str) -> Group:
    words = text.split(" ")
    if len(words) != 3 or words[0] not in COUNTS or words[1] not in COLOURS:
        raise ValueError(f"{text!r} is no group such as 'two red circles'")
    count = COUNTS.index(words[0]) + 1
    shape = words[2].removesuffix("s") if count > 1 else words[2]
    if shape not in SHAPES or str(group := Group(count, words[1], shape)) != text:
        raise ValueError(f"{text!r} is no group such as 'two red circles'")
    return group


def every_scene() -> list[Scene]:
    """Return every scene that the grammar has; two groups of a scene differ in colour or shape."""
    groups = [Group(count + 1, *pair) for count, *pair in product(range(len(COUNTS)), COLOURS, SHAPES)]
    pairs = [(a, b) for a, b in product(groups, groups) if a.pair != b.pair]
    return [*map(Scene, groups), *(Scene(a, relation, b) for a, b in pairs for relation in RELATIONS)]


def layout(scene: Scene, draws: np.random.Generator) -> list[Drawn]:
    """Return places for the objects of a scene, drawn anew until all of them fit."""
    while (placed := _placed(scene, draws)) is None:
        pass
    return placed


def _placed(scene: Scene, draws: np.random.Generator, tries: int = 12) -> list[Drawn] | None:
    found: list[Drawn] = []
    for group, (left, right, top, bottom) in zip(scene.groups, _regions(scene, draws), strict=True):
        for _ in range(group.count):
            for _ in range(tries):
                half = draws.uniform(*HALF_EDGES)
                room = half + MARGIN
                if min(right - left, bottom - top) < 2 * room:
                    continue
                x, y = draws.uniform(left + room, right - room), draws.uniform(top + room, bottom - room)
                if all(max(abs(x - o.x), abs(y - o.y)) - half - o.half >= GAP for o in found):
                    found.append(Drawn(group.colour, group.shape, x, y, half))
                    break
            else:
                return None
    return found


def _regions(scene: Scene, draws: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Return the region (left, right, top, bottom) of each group, in pixels."""
    if scene.second is None:
        return [(0, SIZE, 0, SIZE)]
    line = draws.uniform(*SPLIT)
    if scene.relation in ("left of", "right of"):
        regions = [(0.0, line, 0.0, float(SIZE)), (line, float(SIZE), 0.0, float(SIZE))]
    else:
        regions = [(0.0, float(SIZE), 0.0, line), (0.0, float(SIZE), line, float(SIZE))]
    return regions if scene.relation in ("left of", "above") else regions[::-1]


def coverage(shape: str, x: float, y: float, half: float, size: int = SIZE) -> np.ndarray:
    """Return how much of each pixel of a square of `size` pixels an object covers, float32 [size, size] in [0, 1]."""
    points = (np.arange(size * FINE) + 0.5) / FINE
    across, down = (points[None, :] - x) / half, (points[:, None] - y) / half
    if shape == "circle":
        inside = across**2 + down**2 <= 1
    elif shape == "square":
        inside = (np.abs(across) <= 1) & (np.abs(down) <= 1)
    else:  # a triangle that stands on its base
        inside = (down <= 1) & (np.abs(across) <= (down + 1) / 2)
    return inside.reshape(size, FINE, size, FINE).mean((1, 3), dtype=np.float32)


def rendered(objects: list[Drawn]) -> np.ndarray:
    """Return the picture of objects, float32 [3, 32, 32] in [0, 1]."""
    picture = np.empty((3, SIZE, SIZE), np.float32)
    picture[:] = np.array(BACKGROUND, np.float32)[:, None, None]
    for each in objects:
        colour = np.array(COLOURS[each.colour], np.float32)[:, None, None]
        picture += coverage(each.shape, each.x, each.y, each.half) * (colour - picture)
    return picture


def picture(scene: Scene, seed: int, index: int) -> np.ndarray:
    """Return picture number `index` of a scene, as `rendered` does."""
    return rendered(layout(scene, np.random.default_rng((seed, index))))
