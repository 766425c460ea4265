"""Scores of Fashion-MNIST images that have no gradient, and differentiable stand-ins for them.

A score is a function of images in [0, 1], as `reward.terms.NAME.options.callable` takes it; higher is better.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import label
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 4  # grey levels of `rounded`
WHOLE = 4  # pixels of the smallest part that `one_piece` counts
# The table of luminance of the JPEG standard (ITU T.81, table K.1), as quality 50 uses it.
TABLE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def rounded(student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
    """Return minus the mean squared distance of the images at four grey levels, [B]."""
    steps = LEVELS - 1
    return -((student * steps).round() / steps - (teacher * steps).round() / steps).square().mean((1, 2, 3))


def rounded_stand_in(student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
    """Return `rounded`, with the gradient that it had if rounding were the identity."""
    steps = LEVELS - 1
    through = student + ((student * steps).round() / steps - student).detach()
    return -(through - (teacher * steps).round() / steps).square().mean((1, 2, 3))


def small_file(student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
    """Return minus the kilobytes of each image as a JPEG of quality 50, [B]."""
    pixels = (student[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return torch.tensor([-_jpeg_bytes(each) / 1000 for each in pixels], dtype=student.dtype, device=student.device)


def _jpeg_bytes(image: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=50)
    return buffer.tell()


def small_file_stand_in(student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
    """Return minus the sum of log(1 + |c / q|) over the coefficients c of 8 x 8 blocks and the table's q, [B]."""
    grid = torch.arange(8, dtype=student.dtype, device=student.device)
    basis = torch.cos(math.pi / 8 * (grid[None] + 0.5) * grid[:, None]) / 2
    basis = torch.cat([basis[:1] / math.sqrt(2), basis[1:]])
    blocks = F.pad(student[:, 0], (0, -student.shape[3] % 8, 0, -student.shape[2] % 8), "replicate")
    blocks = blocks.unfold(1, 8, 8).unfold(2, 8, 8) * 255 - 128
    return -(basis @ blocks @ basis.T / TABLE.to(student)).abs().log1p().sum((1, 2, 3, 4))


def one_piece(student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
    """Return minus the number of parts of each image beyond the first, [B], as a cutter of stencils counts them.

    A part is a set of at least four adjoining pixels that are all bright, or all dark and enclosed by bright ones.
    """
    bright = (student[:, 0] > 0.5).cpu().numpy()
    found = [1 - max(_parts(each), 1) + 1 - _parts(~np.pad(each, 1)) for each in bright]
    return torch.tensor(found, dtype=student.dtype, device=student.device)


def _parts(mask: np.ndarray) -> int:
    parts, _ = label(mask)
    return int((np.bincount(parts.ravel())[1:] >= WHOLE).sum())


def one_piece_stand_in(student: Tensor, teacher: Tensor, conditions: Any) -> Tensor:
    """Return minus the length of the edges of each image after a soft threshold at one half, [B]."""
    soft = torch.sigmoid((student - 0.5) / 0.1)
    return -(soft.diff(dim=2).abs().sum((1, 2, 3)) + soft.diff(dim=3).abs().sum((1, 2, 3)))


SCORES: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "rounded": rounded,
    "small_file": small_file,
    "one_piece": one_piece,
}


class Proxy(nn.Module):
    """A network that stands for a score, in a file beside a module whose function `score` calls it."""

    def save(self, path: Path) -> None:
        """Write the network to `path`, and the module beside it, with the same name and `.py`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path)
        own = type(self).__name__
        text = f"from {type(self).__module__} import {own}\n\nscore = {own}.read({str(path.resolve())!r}).forward\n"
        path.with_suffix(".py").write_text(text)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        network = cls()
        network.load_state_dict(load_file(path))
        return network.requires_grad_(False).eval()


class Fitted(Proxy):
    """A network fitted to a score of the student's image beside the teacher's. Calls return its estimate, [B]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((2, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.SiLU()]
        layers += [nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(2 * width * 49, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, student: Tensor, teacher: Tensor, conditions: Any = None) -> Tensor:
        found: Tensor = self.layers(torch.cat([student, teacher], 1) * 2 - 1)[:, 0]
        return found


def fit(name: str, student: Tensor, teacher: Tensor, path: Path, *, std: float, steps: int = 2000) -> float:
    """Fit a network to a score of images around the student's, save it, and return the share of variance explained.

    student, teacher: images [B, 1, 28, 28] in [0, 1], the last tenth of which measures that share. std: of the noise
    that is added to the student's images, one half at random of it, in [0, 1].
    """
    torch.manual_seed(0)
    network, held = Fitted(), len(student) // 10
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)

    def batch(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = student[rows]
        own = own + std * torch.rand(len(own), 1, 1, 1).round() * torch.randn_like(own)
        return own, teacher[rows], SCORES[name](own, teacher[rows], None)

    for _ in range(steps):
        own, other, score = batch(torch.randint(len(student) - held, (128,)))
        optimiser.zero_grad()
        (network(own, other) - score).square().mean().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        own, other, score = batch(torch.arange(len(student) - held, len(student)))
        left = (network(own, other) - score).square().mean() / score.var()
    network.save(path)
    return 1 - float(left)
