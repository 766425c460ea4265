"""Images as a function of a seed, terms built as the configuration builds them, and a tiny real classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redif_ray.config import Term
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.models.classifier import Classifier
from redif_ray.rewards.base import RewardInputs, Rewards, build_terms


def uniform(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.from_numpy(noise.uniform(count, Stream.CALIBRATION, seed=seed)).reshape(shape).to(dtype)


@pytest.fixture
def pair() -> Callable[..., RewardInputs]:
    def make(shape: tuple[int, ...] = (3, 2, 12, 13), dtype: torch.dtype = torch.float64) -> RewardInputs:
        return RewardInputs(uniform(shape, 0, dtype), uniform(shape, 1, dtype), [i % 4 for i in range(shape[0])])

    return make


@pytest.fixture
def build() -> Callable[..., Rewards]:
    def make(
        *names: str,
        terms: dict[str, Any] | None = None,
        shape: tuple[int, ...] = (2, 12, 13),
        num_classes: int = 4,
        captions: bool = False,
    ) -> Rewards:
        config = {name: Term() for name in names} | {k: Term(options=v) for k, v in (terms or {}).items()}
        return build_terms(config, num_classes=num_classes, image_shape=shape, device="cpu", captions=captions)

    return make


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier of 8 x 8 grey images in four classes."""
    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Classifier("conv", "tiny", (1, 8, 8), tuple("abcd")).save(folder)
    return folder
