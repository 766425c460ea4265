"""The shipped judge with a small part of its reference, and images that are not in it, loaded once."""

from __future__ import annotations

import pytest
import torch

from redif_ray.data.images import ImageSet, load_images
from redif_ray.evaluation.encoders import Encoder, embedded, load_encoder
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.judge_source import JUDGES


@pytest.fixture(scope="session")
def shipped() -> ImageSet:
    """The reference images of the shipped judge."""
    return load_images(JUDGES["fashion-mnist"][1])


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("fashion-mnist", (1, 28, 28))


@pytest.fixture(scope="session")
def judge(shipped: ImageSet, encoder: Encoder) -> Judge:
    """The shipped judge with 400 reference images."""
    return Judge(encoder.name, embedded(encoder, torch.tensor(shipped.images[:400]).float() / 255, "cpu"))


@pytest.fixture(scope="session")
def real(shipped: ImageSet) -> tuple[torch.Tensor, list[int]]:
    """Images and labels that are not among the judge's 400."""
    assert shipped.labels is not None
    return torch.tensor(shipped.images[400:520]).float() / 255, shipped.labels[400:520].tolist()
