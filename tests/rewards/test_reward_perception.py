"""PE-Core through timm: which model is asked for and what is done with it; timm itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import normal
from torch import Tensor, nn

from redif_ray.rewards import perception
from redif_ray.rewards.base import RewardError

installed = importlib.util.find_spec("timm") is not None
CONFIG = {
    "architecture": "vit_pe_core_tiny",
    "input_size": (3, 6, 6),
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.6, 0.7],
    "crop_pct": 1.0,
}


class Network(nn.Module):
    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.pretrained_cfg = CONFIG | changes
        self.head = nn.Linear(3 * 6 * 6, 8)
        with torch.no_grad():
            self.head.weight.copy_(normal(8, 108, seed=5))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels.flatten(1)).tanh()


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in that remembers what it was asked for."""
    package: Any = types.ModuleType("timm")
    package.asked, package.changes = [], {}

    def create_model(name: str, *, pretrained: bool) -> Network:
        assert pretrained
        package.asked.append(name)
        return Network(**package.changes)

    package.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", package)
    return package


def test_perception_is_the_cosine_of_the_whole_images_embeddings(timm, pair, build):
    inputs = pair(shape=(3, 3, 13, 9), dtype=torch.float32)
    rewards = build("perception", shape=(3, 13, 9))

    def embedding(image: Tensor) -> np.ndarray:
        planes = [np.asarray(Image.fromarray(c.numpy()).resize((6, 6), Image.Resampling.BICUBIC)) for c in image]
        pixels = (np.stack(planes).clip(0, 1) - np.array([[[0.5]], [[0.4]], [[0.3]]])) / [[[0.5]], [[0.6]], [[0.7]]]
        network = Network()
        bias = rewards.terms["perception"]._encoder.network.head.bias.numpy()
        return np.tanh(network.head.weight.detach().numpy() @ pixels.ravel() + bias)

    expected = []
    for student, teacher in zip(inputs.student, inputs.teacher, strict=True):
        x, y = embedding(student), embedding(teacher)
        expected.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    np.testing.assert_allclose(rewards(inputs)["perception"], expected, atol=1e-5)
    double = replace(inputs, student=inputs.student.double(), paired=inputs.teacher.double())
    np.testing.assert_allclose(rewards(double)["perception"], expected, atol=1e-5)


def test_where_timm_is_told_to_look(timm, build, tmp_path):
    (tmp_path / "model.safetensors").touch()
    for model in (None, "timm/vit_pe_core_base_patch16_224.fb", str(tmp_path)):
        build(terms={"perception": {"model": model} if model else {}}, shape=(3, 8, 8))
    assert timm.asked == [
        "vit_pe_core_large_patch14_336.fb",
        "hf-hub:timm/vit_pe_core_base_patch16_224.fb",
        f"local-dir:{tmp_path.resolve()}",
    ]


def test_models_that_are_not_to_be_had(timm, build, tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(RewardError, match=r"reward\.terms\.perception: model='.*' has no model.safetensors"):
        build(terms={"perception": {"model": str(tmp_path)}}, shape=(3, 8, 8))
    timm.changes = {"architecture": "resnet18"}
    with pytest.raises(RewardError, match=r"is a resnet18; expected vit_pe_core_"):
        build("perception", shape=(3, 8, 8))
    timm.changes = {"interpolation": "lanczos"}
    with pytest.raises(RewardError, match=r"interpolation 'lanczos'; expected one of: bilinear, bicubic"):
        build("perception", shape=(3, 8, 8))
    monkeypatch.delattr(timm, "create_model")
    with pytest.raises(RewardError, match=r"timm cannot load it: AttributeError.*vit_pe_core_base_patch16_224.fb"):
        build("perception", shape=(3, 8, 8))


@pytest.mark.skipif(installed, reason="timm is installed")
def test_without_timm(build):
    with pytest.raises(RewardError, match=r"reward\.terms\.perception: timm cannot be imported .*pip install 'timm"):
        build("perception", shape=(3, 8, 8))


@pytest.mark.skipif(not installed, reason=f"timm is not installed: {perception.PIP}")
def test_a_folder_that_timm_wrote(pair, build, tmp_path: Path):
    import timm
    from timm.models import save_for_hf

    network = timm.create_model("vit_pe_core_tiny_patch16_384", depth=1).eval()
    save_for_hf(network, tmp_path, model_args={"depth": 1}, safe_serialization=True)
    inputs = pair(shape=(2, 3, 384, 384), dtype=torch.float32)
    got = build(terms={"perception": {"model": str(tmp_path)}}, shape=(3, 384, 384))(inputs)["perception"]
    with torch.no_grad():
        x, y = (network(2 * images - 1) for images in (inputs.student, inputs.teacher))
    torch.testing.assert_close(got, torch.cosine_similarity(x, y), atol=1e-5, rtol=1e-4)
