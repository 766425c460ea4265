"""LPIPS: its arithmetic by hand on a backbone of the package's layout, and the package itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import normal
from torch import Tensor, nn

from redif_ray.rewards import lpips
from redif_ray.rewards.base import RewardError, RewardInputs

installed = all(map(importlib.util.find_spec, ("lpips", "torchvision")))
needs_lpips = pytest.mark.skipif(not installed, reason=f"lpips is not installed: {lpips.PIP}")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Scaling(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        shift, scale = (torch.tensor(v, dtype=images.dtype)[:, None, None] for v in (SHIFT, SCALE))
        return (images - shift) / scale


class Slices(nn.Module):
    """Two slices of torchvision's `features`, whose numbers go on, as in the package."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1, self.slice2 = nn.Sequential(), nn.Sequential()
        self.slice1.add_module("0", nn.Conv2d(3, 4, 5, 4))
        self.slice1.add_module("1", nn.ReLU())
        self.slice2.add_module("2", nn.MaxPool2d(3, 2))
        self.slice2.add_module("3", nn.Conv2d(4, 6, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.slice1(images)
        return [first, self.slice2(first)]


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
        with torch.no_grad():
            self.model[-1].weight.copy_(normal(1, channels, 1, 1, seed=channels).abs())


class Package(nn.Module):
    def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert net == "alex" and pnet_rand and not verbose  # nothing is downloaded behind our back
        self.net, self.scaling_layer, self.lins = Slices(), Scaling(), nn.ModuleList([Head(4), Head(6)])


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Tensor]:
    shapes = {
        "features.0.weight": (4, 3, 5, 5),
        "features.0.bias": (4,),
        "features.3.weight": (6, 4, 3, 3),
        "features.3.bias": (6,),
        "classifier.1.weight": (2, 2),
    }
    found = {name: 0.3 * normal(*shape, seed=70 + i) for i, (name, shape) in enumerate(shapes.items())}
    save_file(found, tmp_path / "backbone.safetensors")
    return found


@pytest.fixture
def term(weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build) -> Callable[..., Any]:
    package: Any = types.ModuleType("lpips")
    package.LPIPS = Package
    monkeypatch.setitem(sys.modules, "lpips", package)

    def make(shape: tuple[int, ...] = (3, 64, 68), **options: Any) -> Any:
        options = {"weights": str(tmp_path / "backbone.safetensors")} | options
        return build(terms={"lpips": options}, shape=shape)

    return make


def by_hand(weights: dict[str, Tensor], student: Tensor, teacher: Tensor) -> np.ndarray:
    def maps(images: Tensor) -> list[np.ndarray]:
        shift, scale = (torch.tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        first = nn.functional.conv2d(
            (2 * images - 1 - shift) / scale, weights["features.0.weight"], weights["features.0.bias"], stride=4
        ).relu()
        pooled = nn.functional.max_pool2d(first, 3, 2)
        second = nn.functional.conv2d(pooled, weights["features.3.weight"], weights["features.3.bias"])
        return [first.double().numpy(), second.double().numpy()]

    total = np.zeros(len(student))
    for x, y in zip(maps(student), maps(teacher), strict=True):
        w = normal(1, x.shape[1], 1, 1, seed=x.shape[1]).abs().double().numpy()
        x, y = (v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-10) for v in (x, y))
        total += (w * (x - y) ** 2).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("batch", [64, 3])
def test_lpips_by_hand(batch, term, weights, pair):
    made = pair(shape=(4, 3, 64, 68), dtype=torch.float32)
    inputs = replace(made, paired=made.teacher[[0, 0, 1, 0]])  # the first teacher comes back after another
    got = term(batch=batch)(inputs)["lpips"]
    np.testing.assert_allclose(got, -by_hand(weights, inputs.student, inputs.teacher), rtol=1e-4)
    assert (got < -0.01).all() and term()(replace(inputs, student=inputs.teacher))["lpips"].abs().max() < 1e-9


def test_small_and_grey_images(term, weights, pair):
    grey = pair(shape=(2, 1, 16, 20), dtype=torch.float32)
    large = [
        nn.functional.interpolate(x, (64, 80), mode="bilinear").expand(-1, 3, -1, -1)
        for x in (grey.student, grey.teacher)
    ]
    np.testing.assert_allclose(term((1, 16, 20))(grey)["lpips"], -by_hand(weights, *large), rtol=1e-4)


def test_siblings_share_the_teachers_features(term, pair):
    made = pair(shape=(4, 3, 64, 68), dtype=torch.float32)
    rewards, rows = term(), []
    rewards.terms["lpips"]._backbone.network.net.register_forward_hook(lambda *args: rows.append(len(args[-1][0])))
    rewards(replace(made, paired=made.teacher[[0, 0, 1, 1]]))
    assert sorted(rows) == [2, 4]


def test_distance_has_the_gradient_of_finite_differences():
    x, y = normal(2, 3, 2, 2, seed=1).double().requires_grad_(), normal(2, 3, 2, 2, seed=2).double()
    heads = [normal(3, seed=3).double().abs()]
    assert torch.autograd.gradcheck(lambda x: lpips.distance([x], [y], heads), x)


def test_features_that_are_all_zero_have_a_finite_gradient():
    x = torch.zeros(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    value = lpips.distance([x], [torch.ones_like(x)], [torch.ones(3, dtype=torch.float64)])
    value.sum().backward()
    assert value.item() == pytest.approx(1) and torch.isfinite(x.grad).all()


def test_the_gradient_reaches_the_student(term, pair):
    inputs = pair(shape=(2, 3, 64, 68), dtype=torch.float32)
    inputs.student.requires_grad_()
    rewards = term()
    rewards.require_differentiable("this test")
    rewards(inputs)["lpips"].sum().backward()
    assert inputs.student.grad.abs().sum() > 0


def test_weights_of_another_backbone(term, tmp_path):
    tensors = {"features.0.weight": torch.zeros(4, 3, 5, 5), "features.0.bias": torch.zeros(3)}
    save_file(tensors, tmp_path / "o.safetensors")
    with pytest.raises(RewardError, match=r"lacks features\.0\.bias, features\.3\.weight, .*state dict of net=alex"):
        term(weights=str(tmp_path / "o.safetensors"))
    with pytest.raises(RewardError, match=r"weights=.*expected a .safetensors file.*weights_only=True"):
        term(weights="alexnet.pth")


def test_weights_that_cannot_be_fetched(term, monkeypatch):
    def away(*_: Any, **options: Any) -> None:
        assert options["weights_only"] and options["check_hash"]
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", away)
    with pytest.raises(RewardError, match=r"alexnet-owt-7be5be79.pth cannot be fetched \(no route.*option `weights`"):
        term(weights=None)


@pytest.mark.skipif(installed, reason="lpips is installed")
def test_without_the_package(build):
    with pytest.raises(RewardError, match=r"reward\.terms\.lpips: lpips cannot be imported .*; run pip install lpips"):
        build("lpips", shape=(3, 64, 64))
    with pytest.raises(RewardError, match=r"\(2, 64, 64\); LPIPS takes 1 or 3 channels"):
        build("lpips", shape=(2, 64, 64))


@needs_lpips
@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_is_the_packages_own(net, pair, build, tmp_path):
    import torchvision

    made = {
        "alex": torchvision.models.alexnet,
        "vgg": torchvision.models.vgg16,
        "squeeze": torchvision.models.squeezenet1_1,
    }[net]()
    save_file(made.state_dict(), tmp_path / "backbone.safetensors")
    options = {"net": net, "weights": str(tmp_path / "backbone.safetensors")}
    rewards, inputs = build(terms={"lpips": options}, shape=(3, 64, 64)), pair((2, 3, 64, 64), torch.float32)
    metric = rewards.terms["lpips"]._backbone.network
    theirs = metric(2 * inputs.student - 1, 2 * inputs.teacher - 1).flatten()
    torch.testing.assert_close(rewards(RewardInputs(inputs.student, inputs.teacher, [0, 0]))["lpips"], -theirs)
    torch.testing.assert_close(metric.net.slice1[0].weight, made.features[0].weight)
