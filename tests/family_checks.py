"""Checks that the tests of several text-to-image families share: of images, encodings, students and exports."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import normal
from torch import Tensor

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.pipeline import CAPTION
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.models.student import get_weights, make_student, set_weights, trainable
from redif_ray.models.text import TextModel

CAPTIONS = ("a cat", "a very long caption about dogs")
LONG = "dogs " * 100  # more tokens than an encoder reads
LORA = Lora(rank=2, alpha=7.0)
EXACT = 2e-5  # of a pixel's range


def loaded(folder: Path, **options: Any) -> TextModel:
    model = load_model(folder, **options)
    assert isinstance(model, TextModel)
    return model


def sampled(
    model: DiffusionModel,
    unit: Tensor,
    schedule: Schedule,
    guidance: float,
    *,
    captions: Sequence[str] = CAPTIONS,
    solver: str = "euler",
) -> Tensor:
    predict = model.predictor(model.encode(captions), guidance)
    with torch.no_grad():
        return model.decode(solvers.sample(solver, predict, unit, schedule))


def check_images(found: Tensor, expected: Tensor) -> None:
    """Decoding hides no difference, captions matter, and the images are equal to float32's rounding."""
    assert float((found[0] - found[1]).abs().max()) > 0.05
    assert_alike(found, expected)


def assert_alike(found: Tensor, expected: Tensor, atol: float = EXACT) -> None:
    """The images are equal, and few pixels are black or white, which would hide a difference."""
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def check_encodings(folder: Path, **options: Any) -> None:
    """A caption's encoding does not depend on its company; blank encodings and those of an outline have its shape."""
    first, second = loaded(folder, **options), loaded(folder, **options)
    alone, among = first.encode(["a cat"]), second.encode([CAPTIONS[1], None, "a cat"])
    for name, value in alone.items():
        assert torch.equal(among[name][2:], value)
        assert torch.equal(among[name][1:2], second.null_conditions(1)[name])
    size = options.get("size") or (None, None)
    outline = teacher_outline(Teacher(model=str(folder), height=size[0], width=size[1]))
    assert outline.image_shape == first.image_shape and outline.device.type == "meta"
    fresh = loaded(folder, **options)
    real, blank, empty = second.encode([None, *CAPTIONS]), fresh.blank(3), outline.encode([None, *CAPTIONS])
    assert not fresh.parts
    for made in (blank, empty):
        assert {k: (v.shape, v.dtype) for k, v in made.items()} == {k: (v.shape, v.dtype) for k, v in real.items()}


def check_latents(model: TextModel) -> None:
    """The latents of an image are the VAE's own, which decoding undoes."""
    z = normal(2, *model.latent_shape)
    torch.testing.assert_close(model.from_vae(model.to_vae(z)), z, rtol=1e-5, atol=1e-6)
    images = model.decode(z)
    latents = model.encode_images(images)
    assert latents.shape == z.shape and float(latents.std()) > 0.01
    vae = model.part("vae")
    with torch.no_grad():
        made = vae.encode(2 * (images[:, :, None] if model.has_frames else images) - 1, return_dict=False)[0]
    own = made if isinstance(made, Tensor) else made.mode()
    own = own[:, :, 0] if model.has_frames else own
    torch.testing.assert_close(model.to_vae(latents), own, rtol=1e-5, atol=1e-5)


def check_students(folder: Path, dtype: torch.dtype, **options: Any) -> None:
    """A fresh student predicts as its teacher, bit for bit in float32; gradients reach every adapter."""
    teacher = loaded(folder, dtype=dtype, **options)
    x, level = normal(2, *teacher.latent_shape), schedules.build(teacher.process, 4, "uniform_trailing")[1]
    encoded = teacher.encode(CAPTIONS)
    with torch.no_grad():
        expected = teacher.predict(x, level, encoded, guidance=2.0).eps
    bound = 0.0 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
    for lora in (LORA, Lora()):
        student = make_student(teacher, lora)
        found = student.predict(x, level, encoded, guidance=2.0).eps
        assert float((found.detach() - expected).abs().max()) <= (0.0 if lora.rank else bound)
        found.square().mean().backward()
        grads = {name: p.grad for name, p in trainable(student).items()}
        reached = {name for name, grad in grads.items() if grad is not None and bool(grad.any())}
        names = {name for name in grads if "lora_B" in name} if lora.rank else {n for n in grads if "to_q.w" in n}
        assert names and names <= reached  # the gradient of A is 0 as long as B is


def trained(teacher: DiffusionModel, lora: Lora) -> DiffusionModel:
    return moved(make_student(teacher, lora), 0.5 if lora.rank else 0.1)


def moved(student: DiffusionModel, size: float = 0.5) -> DiffusionModel:
    """Add noise of this standard deviation to the trained weights of a student, which is returned."""
    weights = {k: w + size * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
    set_weights(student, weights)
    return student


def check_export(
    teacher: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, times: list[float], lora: Lora, **options: Any
) -> None:
    """The card's code, diffusers alone, makes the student's image; so does the folder, loaded again."""
    student, guidance = trained(loaded(teacher, **options), lora), 2.5
    schedule = schedules.explicit(student.process, times)
    export_student(student, schedule, folder, name="tiny", guidance=guidance, teacher=teacher, summary=None)
    unit = torch.randn(1, *student.latent_shape, generator=torch.Generator().manual_seed(0))
    expected = sampled(student, unit, schedule, guidance, captions=[CAPTION])
    untrained = sampled(loaded(teacher, **options), unit, schedule, guidance, captions=[CAPTION])
    assert float((untrained - expected).abs().max()) > 0.005
    again = loaded(folder)
    found = sampled(again, unit, schedules.explicit(again.process, times), guidance, captions=[CAPTION])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    sampling, *loading = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert all(len(block.strip().splitlines()) <= 15 for block in (sampling, *loading))
    torch.testing.assert_close(_run(sampling, folder, monkeypatch), expected[0], rtol=0, atol=1e-4)
    assert bool(loading) == (bool(lora.rank) and hasattr(student.pipeline_kind, "load_lora_weights"))
    if loading:
        code = re.sub(r"(?m)^pipe = .*\n", loading[0], sampling)
        found = _run(code, folder, monkeypatch, TEACHER=str(teacher))
        torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-4)


def _run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **scope: Any) -> Tensor:
    code = code.replace("guidance_scale", 'output_type="pt", guidance_scale').replace("image.save", "#")
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("error", FutureWarning)
        exec(code, scope)
    return scope["image"]
