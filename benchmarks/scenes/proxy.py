"""A network that is fitted to the checker's verdicts: what a person would take who wants a gradient."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.scenes.checker import right
from benchmarks.scenes.scenes import COLOURS, COUNTS, RELATIONS, SHAPES, Scene
from benchmarks.scores import Proxy

PARTS = (len(COUNTS), len(COLOURS), len(SHAPES))
FEATURES = 2 * sum(PARTS) + len(RELATIONS)
STEPS, BATCH, RATE = 2000, 128, 2e-3
CHECKED = 1000  # pictures that are not fitted to


@cache
def described(caption: str) -> Tensor:
    """Return what a caption says as zeros and ones, [FEATURES]."""
    scene, words = Scene.of(caption), list[Tensor]()
    for group in (scene.first, scene.second):
        if group is None:
            words.append(torch.zeros(sum(PARTS)))
            continue
        at = (group.count - 1, [*COLOURS].index(group.colour), SHAPES.index(group.shape))
        words += [F.one_hot(torch.tensor(i), n).float() for i, n in zip(at, PARTS, strict=True)]
    relation = torch.tensor([float(scene.relation == each) for each in RELATIONS])
    return torch.cat([*words, relation])


class Verdicts(Proxy):
    """A network that multiplies what is in an image with what the caption asks for. Calls return logits, [B]."""

    def __init__(self, width: int = 24, features: int = 256) -> None:
        super().__init__()
        widths, layers = (3, width, 2 * width, 4 * width, 4 * width), list[nn.Module]()
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, 1 + (i > 0), 1), nn.SiLU()]
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], features))
        self.caption = nn.Sequential(nn.Linear(FEATURES, 128), nn.SiLU(), nn.Linear(128, features))
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(features, 128), nn.SiLU(), nn.Linear(128, 1))

    def forward(self, student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
        """Return the logits, [B]. student: images [B, 3, 32, 32] in [0, 1]. conditions: their captions."""
        asked = torch.stack([described(caption) for caption in conditions]).to(student)
        found: Tensor = self.last(self.image(student * 2 - 1) * self.caption(asked))[:, 0]
        return found


def fit(pictures: np.ndarray, captions: list[str], path: Path) -> float:
    """Fit a network to the verdicts on pictures [n, 3, 32, 32], and save it.

    Returns how often it ranks a right one of the last pictures, which it is not fitted to, above a wrong one.
    """
    torch.manual_seed(0)
    network, images = Verdicts(), torch.from_numpy(pictures)
    wanted = right(images, images, tuple(captions))
    fitted = len(images) - CHECKED
    optimiser = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(fitted, (BATCH,))
        logits = network(images[rows], images[rows], [captions[row] for row in rows])
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(logits, wanted[rows]).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found, of = network(images[fitted:], images[fitted:], captions[fitted:]), wanted[fitted:] > 0.5
    network.save(path)
    return float((found[of, None] > found[None, ~of]).float().mean())
