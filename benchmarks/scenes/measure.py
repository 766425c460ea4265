"""The share of a model's pictures that are right, whole and by kind, on compositions that it was trained on and others.

    python -m benchmarks.scenes.measure FOLDER [--steps 20] [--guidance 1 2 3] [--count 1000]

FOLDER: a teacher, an exported student or a run. Pictures are sampled with DDIM, a student's on its own schedule. The
captions are drawn with repetition, each picture from a noise of its own; both are the same for every model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.emoji.fit import single_thread
from benchmarks.scenes.checker import KINDS, verdict
from benchmarks.scenes.pictures import OUT, captions, drawn
from benchmarks.scenes.scenes import Scene
from redif_ray.evaluation.grids import write_grid
from redif_ray.sample import LoadedStudent, load

SEED = 7  # of captions and noises
SHOWN = 50


def sampled(model: LoadedStudent, scenes: Sequence[Scene], seed: int, guidance: float | None) -> np.ndarray:
    """Return a picture of each scene, float32 [n, 3, 32, 32] in [0, 1]."""
    with torch.no_grad():
        return np.concatenate([*model.batches([str(scene) for scene in scenes], seed, guidance)])


def shares(pictures: np.ndarray, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the share of pictures that are right by kind, and whole by the number of objects, in percent."""
    found = [verdict(each, scene) for each, scene in zip(pictures, scenes, strict=True)]
    by_kind = {kind: 100 * float(np.mean([each[kind] for each in found])) for kind in KINDS}
    counts = sorted({scene.objects for scene in scenes})
    by_count = {
        f"{count} objects": 100
        * float(np.mean([v["whole"] for v, s in zip(found, scenes, strict=True) if s.objects == count]))
        for count in counts
    }
    return by_kind | by_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=20, help="of a teacher")
    parser.add_argument("--guidance", type=float, nargs="+", default=None, help="default: the model's own")
    parser.add_argument("--count", type=int, default=1000, help="pictures of each kind of compositions")
    options = parser.parse_args()
    single_thread()
    model: Any = load(options.folder, steps=options.steps)
    OUT.mkdir(parents=True, exist_ok=True)
    head: list[str] = []
    for guidance in options.guidance or [None]:
        for name, held_out in (("trained", False), ("held_out", True)):
            scenes = drawn(captions(held_out=held_out), options.count, SEED)
            pictures = sampled(model, scenes, SEED, guidance)
            found = shares(pictures, scenes)
            if not head:
                head = ["guidance", "compositions", *found]
                print(f"| {' | '.join(head)} |\n|---|---{'|---:' * len(found)}|")
            scale = model.guidance if guidance is None else guidance
            row = [f"{scale:g}", name, *(f"{share:.1f}" for share in found.values())]
            print(f"| {' | '.join(row)} |", flush=True)
            write_grid(OUT / f"{name}.guidance{scale:g}.png", pictures[:SHOWN])


if __name__ == "__main__":
    main()
