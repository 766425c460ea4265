"""DiT on the latents of a VAE: images against diffusers' DiTPipeline, students, exports, sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from cases import mostly_long
from diffusers import DiTPipeline
from family_checks import LORA, assert_alike, moved
from tiny_dit import CLASSES, write_latent_dit
from tiny_models import edit, normal, write_dit

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.models.dit import LatentDiT, PixelDiT
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import fingerprint, load_model, teacher_outline
from redif_ray.models.start import starting_model
from redif_ray.models.student import make_student, trainable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latent_dit(tmp_path_factory.mktemp("dit"))


def drawn(model: Any, unit: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
    schedule = schedules.build(model.process, steps, "uniform_trailing")
    predict = model.predictor(model.encode([1] * len(unit)), guidance)
    with torch.no_grad():
        return model.images(solvers.sample("euler", predict, unit, schedule))


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_images_are_the_pipeline_s(folder: Path, guidance: float) -> None:
    model = load_model(folder)
    assert isinstance(model, LatentDiT) and (model.latent_shape, model.image_shape) == ((4, 8, 8), (3, 16, 16))
    assert model.num_classes == CLASSES and model.null_label == CLASSES
    pipe: Any = DiTPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = pipe([1], guidance_scale=guidance, generator=generator, num_inference_steps=4, output_type="np").images
    unit = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert_alike(drawn(model, unit, 4, guidance), torch.from_numpy(made).movedim(-1, 1))


def test_latents_of_images_are_those_of_the_vae(folder: Path) -> None:
    model: Any = load_model(folder)
    z = normal(2, *model.latent_shape)
    torch.testing.assert_close(model.from_vae(model.to_vae(z)), z)
    images = model.images(z)
    with torch.no_grad():
        own = model.part("vae").encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(model.to_vae(model.encode_images(images)), own, rtol=1e-5, atol=1e-5)


EXPORTS = {
    f"{dtype}-{kind}": (dtype, lora)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for kind, lora in (("lora", LORA), ("whole", Lora()))
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_long(EXPORTS, lambda name: name == "torch.float16-lora"))
def test_an_export_samples_as_its_student_without_this_package(name: str, tmp_path: Path) -> None:
    dtype, lora = EXPORTS[name]
    teacher = load_model(write_latent_dit(tmp_path / "teacher", dtype))
    student = moved(make_student(teacher, lora), 0.2)
    assert all(p.requires_grad for p in trainable(student).values())
    schedule = schedules.build(student.process, 3, "uniform_trailing")
    out = tmp_path / "out"
    export_student(student, schedule, out, name="few", guidance=2.0, teacher=tmp_path / "teacher", summary=None)
    assert {path.name for path in out.iterdir()} >= {"transformer", "vae", "scheduler", "sample.py", "redif.json"}
    unit = normal(2, *student.latent_shape)
    torch.save({"noise": unit}, tmp_path / "noise.pt")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from sample import Student; "
        "student = Student(sys.argv[1]); assert 'redif_ray' not in sys.modules; "
        "noise = torch.load(sys.argv[2], weights_only=True)['noise']; "
        "torch.save({'images': student(noise, torch.tensor([1, 1]))}, sys.argv[3])"
    )
    arguments = [str(out), str(tmp_path / "noise.pt"), str(tmp_path / "images.pt")]
    subprocess.run([sys.executable, "-I", "-c", code, *arguments], check=True, capture_output=True, timeout=120)
    images = torch.load(tmp_path / "images.pt", weights_only=True)["images"]
    assert images.shape == (2, 3, 16, 16)
    assert_alike(drawn(load_model(out), unit, 3, 2.0), images, atol=1e-4)


def test_a_student_of_another_start_has_the_teacher_s_vae(folder: Path, tmp_path: Path) -> None:
    teacher = load_model(folder)
    assert isinstance(teacher, LatentDiT)
    started = starting_model(teacher, Teacher(model=str(folder)), str(write_latent_dit(tmp_path / "init")))
    assert isinstance(started, LatentDiT) and started.frozen is teacher.frozen


@pytest.mark.slow
def test_the_fingerprint_sees_the_vae(folder: Path, tmp_path: Path) -> None:
    assert fingerprint(load_model(folder)) == fingerprint(load_model(write_latent_dit(tmp_path / "same")))
    edit(tmp_path / "same" / "vae" / "config.json", scaling_factor=0.6)
    assert fingerprint(load_model(folder)) != fingerprint(load_model(tmp_path / "same"))


@pytest.mark.slow
def test_what_is_wrong_with_a_folder_is_told_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    outline = teacher_outline(Teacher(model=str(folder)), check=True)
    assert outline.device.type == "meta" and outline.image_shape == (3, 16, 16)
    with pytest.raises(ModelError, match="makes images of 16 x 16 pixels only"):
        load_model(folder, size=(32, 32))
    assert isinstance(load_model(write_dit(tmp_path / "pixels")), PixelDiT)
    edit(write_latent_dit(tmp_path / "wide") / "vae" / "config.json", latent_channels=8)
    with pytest.raises(ModelError):
        load_model(tmp_path / "wide")
    edit(write_latent_dit(tmp_path / "no") / "model_index.json", vae=["diffusers", "NoVae"])
    with pytest.raises(ModelError, match=r"vae is \[diffusers, NoVae\]"):
        load_model(tmp_path / "no")


def test_an_index_may_say_null_of_the_vae(tmp_path: Path) -> None:
    edit(write_dit(tmp_path / "teacher") / "model_index.json", vae=None)
    student = make_student(load_model(tmp_path / "teacher"), Lora())
    schedule, out = schedules.build(student.process, 2, "uniform_trailing"), tmp_path / "out"
    export_student(student, schedule, out, name="few", guidance=1.0, teacher=tmp_path / "teacher", summary=None)
    sampler = run_path(str(out / "sample.py"))["Student"](out)
    unit = normal(2, *student.latent_shape)
    assert_alike(drawn(student, unit, 2, 1.0), sampler(unit, torch.tensor([1, 1])), atol=1e-4)
