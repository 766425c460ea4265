"""The shipped judge with a small part of its reference, loaded once."""

from __future__ import annotations

import pytest
import torch

from redif_ray.data.images import ImageSet
from redif_ray.evaluation.judge import Judge, load_judge


@pytest.fixture(scope="session")
def shipped() -> Judge:
    return load_judge("fashion-mnist")


@pytest.fixture(scope="session")
def judge(shipped: Judge) -> Judge:
    """With 400 reference images."""
    whole = shipped.reference
    assert whole.labels is not None
    return Judge(shipped.encoder, ImageSet(whole.images[:400], whole.labels[:400], whole.classes))


@pytest.fixture(scope="session")
def real(shipped: Judge) -> tuple[torch.Tensor, list[int]]:
    """Images and labels that are not among the judge's 400."""
    whole = shipped.reference
    assert whole.labels is not None
    return torch.tensor(whole.images[400:520]).float() / 255, whole.labels[400:520].tolist()
