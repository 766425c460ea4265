"""A mixture of Gaussians in the plane as a family of a user's own: an exact denoiser, and a network that may bend it.

The teacher answers E[x0 | x] of the mixture exactly, so fine sampling has the law of the mixture. The student starts
with the same answer and trains a small network that is added to it, whose last layer starts at 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redif_ray.diffusion.levels import FlowMatching
from redif_ray.models.protocol import DiffusionModel, Encoded
from redif_ray.types import Condition

CENTRES = torch.tensor([[0.6, 0.1], [-0.1, 0.6], [-0.6, -0.1], [0.1, -0.6], [0.0, 0.0]])
STD = 0.06


class Bent(nn.Module):
    """The denoiser of the mixture plus a network; x and the answer are [B, 1, 1, 2]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("centres", CENTRES.clone())
        self.hidden = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        flat, sigma = x.flatten(1), (timestep.to(x.dtype) / 1000).unsqueeze(1)
        exact = denoised(flat, 1 - sigma, sigma, self.centres)
        inputs = torch.cat([flat, sigma, exact[:, :1] * 0 + torch.log(sigma.clamp(min=1e-3))], 1)
        return (exact + self.last(self.hidden(inputs))).view_as(x)


def denoised(x: Tensor, alpha: Tensor, sigma: Tensor, centres: Tensor) -> Tensor:
    """Return E[x0 | x] of x = alpha x0 + sigma eps, [B, 2]; alpha and sigma are [B, 1]."""
    variance = (alpha * STD) ** 2 + sigma**2
    off = x.unsqueeze(1) - alpha.unsqueeze(2) * centres  # [B, centres, 2]
    share = torch.softmax(-off.square().sum(2) / (2 * variance), 1).unsqueeze(2)
    means = centres + (alpha * STD**2 / variance).unsqueeze(2) * off
    return (share * means).sum(1)


class Mixture(DiffusionModel):
    """A model whose latents are points, and whose images are the same points in [0, 1]."""

    @property
    def config(self) -> Any:
        return {}

    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        return {}

    def null_conditions(self, batch: int) -> Encoded:
        return {}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        return self.call_network(x, timestep.float())

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents + 1) / 2).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        return 2 * images - 1


def load(folder: Path, dtype: torch.dtype) -> Mixture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Bent().to(dtype)
    return Mixture(
        network=network.requires_grad_(False).eval(),
        component="network",
        index=json.loads((folder / "model_index.json").read_text()),
        scheduler=None,
        num_classes=None,
        process=FlowMatching(),
        prediction_type="sample",
        clip=None,
        latent_shape=(1, 1, 2),
        image_shape=(1, 1, 2),
    )
