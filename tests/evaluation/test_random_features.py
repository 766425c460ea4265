"""Random features: the same in every process, and a judge that orders what it should."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from redif_ray.data.images import ImageSet
from redif_ray.evaluation.encoders import embedded, fit, make_encoder
from redif_ray.evaluation.frechet import frechet
from redif_ray.evaluation.judge_source import RANDOM_FEATURES
from redif_ray.evaluation.prdc import prdc
from redif_ray.evaluation.random_features import RandomFeatures
from redif_ray.models.classifier import ClassifierError


def test_weights_are_a_function_of_the_shape_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = (RandomFeatures((1, 28, 28)).state_dict() for _ in "ab")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in first.values())).hexdigest()
    assert digest[:16] == "f18b5e5d90f310eb"


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8), (1, 28, 28), (3, 64, 48)])
def test_by_hand_for_any_shape(shape: tuple[int, ...]) -> None:
    """relu(W x) layer after layer, and He's variance: features of inputs of unit size are of unit size."""
    network = RandomFeatures(shape)
    images = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    x = images * 2 - 1
    for layer in network.body:
        x = torch.nn.functional.conv2d(x, layer.weight, stride=2, padding=1).clamp(min=0)
    assert max(x.shape[2:]) <= 4
    expected = x.flatten(1) @ network.project.weight.T
    found = network.embedding(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == (16, 64) and 0.1 < float(found.square().mean()) < 3
    with pytest.raises(ClassifierError, match=r"classifier random-features: images span \[-(1|0\.99)"):
        network.embedding(images * 2 - 1)


@pytest.mark.slow
def test_they_tell_what_is_wrong(shipped: ImageSet) -> None:
    """Real images against real ones are near; blurred, noisy and one-class ones are not, and lose recall."""
    pixels = shipped.images / np.float32(255)
    labels = shipped.labels
    assert labels is not None
    encoder, real = make_encoder(RANDOM_FEATURES, (1, 28, 28)), pixels[1000:2000]
    reference = embedded(encoder, torch.from_numpy(pixels[:1000]), "cpu")
    noisy = np.clip(real + 0.15 * np.random.default_rng(0).normal(size=real.shape), 0, 1).astype(np.float32)
    blurred = gaussian_filter(real, (0, 0, 1, 1))
    few = np.concatenate([pixels[labels == c][:500] for c in (0, 1)])
    sets = {"real": real, "noisy": noisy, "blurred": blurred, "few": few}
    features = {name: embedded(encoder, torch.from_numpy(images), "cpu") for name, images in sets.items()}
    distance = {name: frechet(f, reference) for name, f in features.items()}
    assert all(distance[name] > 2 * distance["real"] for name in ("noisy", "blurred", "few")), distance
    recall = {name: prdc(f, reference)["recall"] for name, f in features.items()}
    assert recall["real"] > 0.85 and recall["few"] < recall["real"] - 0.15, recall
    assert fit(encoder, features["real"], [0] * 1000) == {}
