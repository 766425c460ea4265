"""The share of a model's pictures that are right, whole and by kind, and how different those of one caption are.

    python -m benchmarks.scenes.measure FOLDER [--steps 20] [--guidance 1 2 3] [--count 1000]

FOLDER: a teacher, an exported student or a run. Pictures are sampled with DDIM, a student's on its own schedule. Each
has a noise of its own, and captions and noises are the same for every model. "trained" and "held out" are compositions
that captions of the training have and others.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.emoji.fit import single_thread
from benchmarks.scenes.checker import KINDS, objects, verdict
from benchmarks.scenes.pictures import OUT, captions, drawn
from benchmarks.scenes.scenes import HELD_OUT_PAIRS, SIZE, Group, Scene
from redif_ray.evaluation.diversity import mean_distance
from redif_ray.evaluation.encoders import embedded, load_encoder
from redif_ray.evaluation.grids import write_grid
from redif_ray.evaluation.report import markdown_table
from redif_ray.sample import LoadedStudent, load

SEED = 7  # of captions and noises
SHOWN = 50
VARIED, NOISES = 150, 8  # captions of which several pictures are drawn, and how many of each
CELLS = 4  # along each edge of a picture, in which places of objects are counted
JUDGE = "emoji_clip_b"  # gives no reward here


def sampled(model: LoadedStudent, scenes: Sequence[Scene], seed: int, guidance: float | None) -> np.ndarray:
    """Return a picture of each scene, float32 [n, 3, 32, 32] in [0, 1]."""
    with torch.no_grad():
        return np.concatenate([*model.batches([str(scene) for scene in scenes], seed, guidance)])


def framed(pictures: np.ndarray) -> np.ndarray:
    """Return pictures with a dark line around each, [n, 3, 34, 34], since their grounds are alike."""
    return np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.4)


def judged(pictures: np.ndarray, scenes: Sequence[Scene]) -> list[dict[str, bool]]:
    """Return the verdict on each picture."""
    return [verdict(each, scene) for each, scene in zip(pictures, scenes, strict=True)]


def shares(found: Sequence[dict[str, bool]], scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the share of right verdicts by kind, and whole by the number of objects, in percent."""
    by_kind = {kind: 100 * float(np.mean([each[kind] for each in found])) for kind in KINDS}
    counts = sorted({scene.objects for scene in scenes})
    by_count = {
        f"{count} objects": 100
        * float(np.mean([v["whole"] for v, s in zip(found, scenes, strict=True) if s.objects == count]))
        for count in counts
    }
    return by_kind | by_count


def by_held_out(whole: np.ndarray, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the share of pictures that are right by what is held out, in percent. whole: bool [n].

    "blue triangle whole" is the share of scenes in which that pair alone is held out.
    """
    never = np.array([scene.never_asked for scene in scenes])
    if not never.any():
        return {"trained whole": 100 * float(whole.mean())}
    parts = {"held out": whole, "asked": whole[~never], "never asked": whole[never]}
    names = [{_held_out_as(group) for group in scene.groups if group.held_out} for scene in scenes]
    for name in sorted(set[str]().union(*names)):
        parts[name] = whole[[each == {name} for each in names]]
    return {f"{name} whole": 100 * float(part.mean()) for name, part in parts.items()}


def _held_out_as(group: Group) -> str:
    return " ".join(group.pair) if group.pair in HELD_OUT_PAIRS else str(group)


def variety(pictures: np.ndarray, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return how different the pictures of one scene are, those of a scene one after the other, `NOISES` of each.

    distance: the mean distance 1 - cosine of two pictures of a scene in the judge's features. entropy: of the places of
    objects in right pictures, in bits, in the mean over relations and first or second group.
    """
    features = torch.from_numpy(embedded(load_encoder(JUDGE, pictures.shape[1:]), torch.from_numpy(pictures), "cpu"))
    return {"distance": float(mean_distance(features, NOISES).mean()), "entropy": _entropy(pictures, scenes)}


def _entropy(pictures: np.ndarray, scenes: Sequence[Scene]) -> float:
    places = defaultdict[tuple[str | None, int], Counter[tuple[int, int]]](Counter)
    for picture, scene in zip(pictures, scenes, strict=True):
        if not verdict(picture, scene)["whole"]:
            continue
        for each in objects(picture):
            group = [one.pair for one in scene.groups].index((str(each.colour), str(each.shape)))
            places[scene.relation, group][int(each.x * CELLS / SIZE), int(each.y * CELLS / SIZE)] += 1
    return float(np.mean([bits([*found.values()]) for found in places.values()]))


def bits(counts: Sequence[int]) -> float:
    """Return an estimate of the entropy behind counts, in bits, with the correction of Miller (1955) for few counts."""
    share = np.array(counts) / sum(counts)
    return float(-(share * np.log2(share)).sum() + (len(counts) - 1) / (2 * sum(counts) * np.log(2)))


def measured(
    model: LoadedStudent, guidance: float | None = None, *, count: int = 1000, shown: Path | None = None
) -> dict[str, float]:
    """Return `shares` of `count` pictures each, named as "trained whole" and "held out whole", and `variety`.

    "asked whole" and "never asked whole" are the shares of held-out compositions that students may be asked for, and of
    the others.

    "never asked whole" is the share of those that are held out from `asked`, too.

    shown: the folder for some of the pictures; None: they are not written.
    """
    found = dict[str, float]()
    for name, held_out in (("trained", False), ("held out", True)):
        scenes = drawn(captions(held_out=held_out), count, SEED)
        pictures = sampled(model, scenes, SEED, guidance)
        verdicts = judged(pictures, scenes)
        found |= {f"{name} {kind}": share for kind, share in shares(verdicts, scenes).items()}
        found |= by_held_out(np.array([each["whole"] for each in verdicts]), scenes)
        if shown is not None:
            scale = model.guidance if guidance is None else guidance
            write_grid(shown / f"{name.replace(' ', '_')}.guidance{scale:g}.png", framed(pictures[:SHOWN]))
    scenes = [scene for scene in drawn(captions(held_out=True), VARIED, SEED + 1) for _ in range(NOISES)]
    return found | variety(sampled(model, scenes, SEED + 1, guidance), scenes)


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
    guidances = options.guidance or [model.guidance]
    found = [measured(model, guidance, count=options.count, shown=OUT) for guidance in guidances]
    head = ["", *(f"guidance {guidance:g}" for guidance in guidances)]
    print(markdown_table(head, [[name, *(f"{each[name]:.4g}" for each in found)] for name in found[0]]))


if __name__ == "__main__":
    main()
