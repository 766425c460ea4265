"""Scores without a gradient against pictures whose score is plain, and their stand-ins against differences."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import scores
from benchmarks.scores import Fitted, fit


def picture(*boxes: tuple[int, int, int, int]) -> Tensor:
    """Bright boxes (top, left, bottom, right) on black; a later box is dark where it lies on a bright one."""
    found = torch.zeros(1, 1, 28, 28)
    for top, left, bottom, right in boxes:
        found[..., top:bottom, left:right] = 1 - found[..., top:bottom, left:right]
    return found


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (picture((4, 4, 20, 20)), 0),
        (picture((4, 4, 20, 12), (4, 14, 20, 22)), -1),
        (picture((4, 4, 20, 20), (8, 8, 12, 12)), -1),  # a ring: what it encloses falls out of the stencil
        (picture((4, 4, 20, 20), (22, 22, 23, 24)), 0),  # a speck
        (picture(), 0),
        (picture((2, 2, 8, 8), (10, 10, 16, 16), (18, 18, 24, 24)), -2),
    ],
)
def test_one_piece_counts_parts_and_holes(image: Tensor, expected: float) -> None:
    assert scores.one_piece(image, image, None).tolist() == [expected]


def test_rounded_sees_levels_alone() -> None:
    levels = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).repeat(196).reshape(1, 1, 28, 28)
    near = (levels + 0.1 * torch.rand(1, 1, 28, 28)).clamp(0, 1)
    assert scores.rounded(near, levels, None).item() == 0
    off = (levels + 1 / 3).clamp(0, 1)
    assert scores.rounded(off, levels, None).item() == pytest.approx(-(3 / 4) / 9, rel=1e-5)


def test_rounded_has_the_gradient_of_the_identity_in_its_stand_in() -> None:
    student, teacher = torch.rand(2, 1, 28, 28, requires_grad=True), torch.rand(2, 1, 28, 28)
    value = scores.rounded_stand_in(student, teacher, None)
    assert torch.allclose(value, scores.rounded(student.detach(), teacher, None), atol=1e-6)
    value.sum().backward()
    expected = -2 * ((student.detach() * 3).round() / 3 - (teacher * 3).round() / 3) / 784
    assert student.grad is not None and torch.allclose(student.grad, expected, atol=1e-6)


def test_the_size_of_a_file_is_pillows_and_its_stand_in_ranks_alike() -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(8, 1, 7, 7), size=28, mode="bilinear")
    images = smooth + torch.linspace(0, 0.5, 8).reshape(8, 1, 1, 1) * torch.randn(8, 1, 28, 28)
    sizes = scores.small_file(images, images, None)
    for image, size in zip(images, sizes, strict=True):
        buffer = io.BytesIO()
        pixels = np.uint8(np.rint(image[0].clamp(0, 1).numpy() * 255))
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=50)
        assert size.item() == pytest.approx(-len(buffer.getvalue()) / 1000)
    instead = scores.small_file_stand_in(images, images, None)
    assert np.corrcoef(sizes, instead)[0, 1] > 0.95


@pytest.mark.parametrize("name", list(scores.SCORES))
def test_a_stand_in_has_a_gradient(name: str) -> None:
    student = torch.rand(2, 1, 28, 28, requires_grad=True)
    found = getattr(scores, f"{name}_stand_in")(student, torch.rand(2, 1, 28, 28), None)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.shape == (2,) and gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.long
def test_a_network_learns_a_score(tmp_path: Path) -> None:
    torch.manual_seed(1)
    images = torch.nn.functional.interpolate(torch.rand(200, 1, 4, 4), size=28, mode="bilinear")
    others = torch.nn.functional.interpolate(torch.rand(200, 1, 4, 4), size=28, mode="bilinear")
    assert fit("rounded", images, others, tmp_path / "a" / "net.safetensors", std=0.0, steps=150) > 0.5
    network = Fitted.read(tmp_path / "a" / "net.safetensors")
    estimates = network(images, others)
    assert np.corrcoef(estimates, scores.rounded(images, others, None))[0, 1] > 0.7
