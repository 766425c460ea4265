"""Minus the divergence of the images' colour histograms."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting

BINS, EPS = 32, 1e-6


@dataclass(frozen=True, config=OPTIONS)
class HistogramKl:
    """-sum over channels of KL(teacher || student), 32 bins over [0, 1], in nats; not differentiable (hard bins).

    A bin's probability is (share of the pixels + 1e-6) / (1 + 32e-6), so the value is in
    [-C ln(1 + 1e6) / (1 + 32e-6), 0] for C channels.
    """

    setting: Setting
    name: ClassVar[str] = "histogram_kl"
    differentiable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __call__(self, inputs: RewardInputs) -> Tensor:
        p, q = histograms(inputs.teacher), histograms(inputs.student)
        return -(p * (p / q).log()).sum((1, 2)).to(inputs.student.dtype)


def histograms(images: Tensor) -> Tensor:
    """Return the smoothed histogram, [B, C, 32] float64 with sum 1, of each channel of [B, C, H, W] in [0, 1]."""
    bins = (images.detach().flatten(2) * BINS).to(torch.int64).clamp(0, BINS - 1)  # 1.0 belongs to the last bin
    counts = torch.zeros(*bins.shape[:2], BINS, dtype=torch.float64, device=images.device)
    counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float64))
    return (counts / bins.shape[2] + EPS) / (1 + BINS * EPS)
