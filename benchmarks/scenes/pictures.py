"""The scenes that teacher and autoencoder are trained on, and the captions of both kinds.

    python -m benchmarks.scenes.pictures

writes `captions.txt`, on which the teacher is trained, and `runs/scenes/asked.txt`: these and half of what
is held out, for students that need no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.scenes.scenes import Scene, every_scene, picture

OUT = Path("runs/scenes")
CAPTIONS, ASKED = Path("benchmarks/scenes/captions.txt"), OUT / "asked.txt"
SINGLE = 0.15  # share of the pictures with one group


def captions(*, held_out: bool) -> list[Scene]:
    """Return the scenes that are held out from all training, or the others."""
    return [scene for scene in every_scene() if scene.held_out == held_out]


def asked() -> list[Scene]:
    """Return the scenes that a student may be asked for whose reward needs no picture."""
    return [scene for scene in every_scene() if not scene.never_asked]


def drawn(scenes: Sequence[Scene], count: int, seed: int) -> list[Scene]:
    """Return `count` of the scenes, with repetition, of which a share of `SINGLE` has one group."""
    draws = np.random.default_rng(seed)
    by_groups = [[s for s in scenes if s.second is None], [s for s in scenes if s.second is not None]]
    kinds = (draws.random(count) >= SINGLE).astype(int)
    return [by_groups[kind][draws.integers(len(by_groups[kind]))] for kind in kinds]


def pictures(scenes: Sequence[Scene], seed: int) -> np.ndarray:
    """Return a picture of each scene, uint8 [n, 3, 32, 32]."""
    return np.stack([(picture(scene, seed, i) * 255).round().astype(np.uint8) for i, scene in enumerate(scenes)])


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for path, found in ((CAPTIONS, captions(held_out=False)), (ASKED, asked())):
        path.write_text("".join(f"{scene}\n" for scene in found))
        print(f"{len(found)} captions in {path}")


if __name__ == "__main__":
    main()
