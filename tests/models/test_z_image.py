"""Z-Image against diffusers' own pipeline: the same noise, captions, guidance and size give the same image."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from family_checks import assert_alike, moved, sampled
from tiny_models import normal
from tiny_z_image import write_z_image
from torch import Tensor

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules
from redif_ray.diffusion.schedules import Schedule
from redif_ray.evaluation.compute import prediction_flops
from redif_ray.export import export_student
from redif_ray.export.adapters import FILE
from redif_ray.export.pipeline import CAPTION
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.models.student import enable_checkpointing, make_student, trainable
from redif_ray.models.z_image import TOKENS
from redif_ray.planning.timing import hollow

pytestmark = pytest.mark.slow

CAPTIONS = ["a cat", "a very long caption about dogs that run through a field"]  # of 32 tokens and of 96, as padded
STEPS, SIZE = 4, (24, 16)
ADAPTERS = Lora(rank=2, alpha=6.0)
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_z_image(tmp_path_factory.mktemp("z_image"))


def grid(model: DiffusionModel) -> Schedule:
    return schedules.build(model.process, STEPS, "uniform_trailing")


@pytest.mark.parametrize(
    ("guidance", "size", "scheduler"),
    [
        (1.0, SIZE, {}),
        (3.5, SIZE, {}),
        (3.5, (16, 32), {"shift": 6.0}),
        (1.0, SIZE, DYNAMIC),
        (1.0, (32, 32), DYNAMIC),
    ],
)
def test_the_image_is_the_pipeline_s(
    guidance: float, size: tuple[int, int], scheduler: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    source = write_z_image(tmp_path, **scheduler) if scheduler else folder
    model = load_model(source, size=size)
    pipeline = ZImagePipeline.from_pretrained(source, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    unit = normal(2, *model.latent_shape)
    expected = pipeline(
        list(CAPTIONS),  # the pipeline writes into it
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance - 1,
        latents=unit.clone(),
        output_type="pt",
    ).images
    found = sampled(model, unit, grid(model), guidance, captions=list(CAPTIONS))
    assert found.shape == (2, 3, *size)
    assert float((found[0] - found[1]).abs().max()) > 0.05
    assert_alike(found, expected)


def test_the_shift_of_larger_images_grows_only_where_the_scheduler_says_so(folder: Path, tmp_path: Path) -> None:
    small, large = (load_model(folder, size=size).process for size in ((16, 16), (32, 32)))
    assert vars(small) == vars(large) and vars(small)["shift"] == 3.0
    write_z_image(tmp_path, **DYNAMIC)
    small, large = (load_model(tmp_path, size=size).process for size in ((16, 16), (32, 32)))
    assert vars(small)["shift"] < vars(large)["shift"]


def test_the_latents_of_images_are_those_that_decode_to_them(folder: Path) -> None:
    model: Any = load_model(folder, size=SIZE)
    z, images = normal(2, *model.latent_shape), torch.rand(2, *model.image_shape)
    config = model.part("vae").config
    torch.testing.assert_close(model.from_vae(model.to_vae(z)), z)
    expected = (model.part("vae").encode(2 * images - 1).latent_dist.mode() - config.shift_factor) * 0.3611
    torch.testing.assert_close(model.encode_images(images), expected)


def test_encodings_without_data_are_the_longest(folder: Path) -> None:
    model = load_model(folder, size=SIZE)
    blank = model.blank(2)
    assert not model.parts
    outline = teacher_outline(Teacher(model=str(folder), height=SIZE[0], width=SIZE[1]))
    without, real = outline.encode(["a cat", None]), model.encode(["a cat", "dogs " * 200])
    assert real["lengths"].tolist() == [21, TOKENS] and without["states"].is_meta
    for encoded in (blank, without):
        assert {k: (v.shape, v.dtype) for k, v in encoded.items()} == {k: (v.shape, v.dtype) for k, v in real.items()}
    x = torch.empty(2, *model.latent_shape, device="meta")
    assert outline.predict(x, outline.process.noisiest(), without, guidance=2.0).x0.shape == x.shape
    x = normal(2, *model.latent_shape)
    assert bool(model.predict(x, model.process.noisiest(), blank).x0.isfinite().all())
    assert prediction_flops(outline) > 0
    with hollow(outline.network):  # as a run times a larger network
        assert outline.predict(x, outline.process.noisiest(), blank).x0.shape == x.shape


@pytest.mark.parametrize("lora", [ADAPTERS, Lora()])
def test_a_fresh_student_predicts_what_its_teacher_does(lora: Lora, folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        teacher = load_model(folder, size=SIZE, dtype=dtype)
        student = make_student(teacher, lora)
        x, level, encoded = normal(2, *teacher.latent_shape), grid(teacher)[1], teacher.encode(CAPTIONS)
        with torch.no_grad():
            expected = teacher.predict(x, level, encoded, guidance=2.0).eps
            found = student.predict(x, level, encoded, guidance=2.0).eps
        if dtype == torch.float32 or lora.rank:
            assert torch.equal(found, expected)
        else:
            assert 0 < float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    whole = load_model(folder, size=SIZE).predict(x, level, encoded, guidance=2.0).eps
    assert 1e-6 < float((found - whole).abs().max()) < 0.05 * float(whole.abs().max())


def test_gradients_reach_the_adapters_and_checkpointing_changes_none(folder: Path) -> None:
    def gradients(student: DiffusionModel) -> dict[str, Tensor]:
        x, encoded = normal(2, *student.latent_shape), student.encode(CAPTIONS)
        student.predict(x, grid(student)[1], encoded).eps.square().mean().backward()
        return {name: p.grad for name, p in trainable(student).items() if p.grad is not None}

    teacher = load_model(folder, size=SIZE)
    student, saving = (moved(make_student(teacher, ADAPTERS)) for _ in "ab")
    enable_checkpointing(saving)
    found, expected = gradients(saving), gradients(student)
    assert expected.keys() == trainable(student).keys()
    assert {name.split(".")[0] for name in expected} == {"layers", "noise_refiner", "context_refiner"}
    assert all(float(value.abs().max()) > 0 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_rows_do_not_depend_on_the_other_captions_of_a_batch(folder: Path) -> None:
    """Encodings are equal bit for bit, predictions up to rounding, since attention has a mask where lengths differ."""
    model, other = (load_model(folder, size=SIZE) for _ in "ab")
    alone, among = model.encode(["a cat"]), other.encode([CAPTIONS[1], None, "a cat"])
    length = int(alone["lengths"])
    assert torch.equal(among["states"][2:, :length], alone["states"])
    assert not among["states"][2, length:].any() and among["lengths"][2] == length
    assert torch.equal(among["states"][1:2, : int(among["lengths"][1])], model.null_conditions(1)["states"])
    x, level = normal(3, *model.latent_shape), grid(model)[1]
    expected = model.predict(x[2:], level, alone).eps
    torch.testing.assert_close(model.predict(x, level, among).eps[2:], expected, rtol=1e-5, atol=1e-5)


def test_captions_and_sizes_that_are_too_long_are_named(folder: Path) -> None:
    model = load_model(folder, size=SIZE)
    fits = "a" * (TOKENS - 3)
    assert model.cut_short([*CAPTIONS, fits, fits + "a"]) == [fits + "a"]
    first, second, third = (model.encode([caption])["states"] for caption in (fits[:-1] + "b", fits, fits + "b"))
    assert not torch.equal(first, second) and torch.equal(second, third)
    with pytest.raises(ModelError, match=r"has no sample_size; set teacher.height and teacher.width"):
        load_model(folder)
    with pytest.raises(ModelError, match=r"takes multiples of 4; set .*, 24 x 16 for instance"):
        load_model(folder, size=(22, 16))
    with pytest.raises(ModelError, match=r"positions \(axes_lens\) reach to 64 x 64 pixels"):
        load_model(folder, size=(16, 68))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_card_and_the_adapters_sample_what_the_student_does(
    guidance: float, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, out = moved(make_student(load_model(folder, size=SIZE), ADAPTERS)), tmp_path / "student"
    schedule = schedules.explicit(student.process, [1000.0, 812.5, 400.25, 90.0])
    export_student(student, schedule, out, name="tiny", guidance=guidance, teacher=folder, summary=None)
    unit = torch.randn(1, *student.latent_shape, generator=torch.Generator().manual_seed(0))
    expected = sampled(student, unit, schedule, guidance, captions=[CAPTION])[0]
    teacher = load_model(folder, size=SIZE)
    assert float((sampled(teacher, unit, schedule, guidance, captions=[CAPTION])[0] - expected).abs().max()) > 0.05

    again, settings = load_model(out), json.loads((out / "redif.json").read_text())
    levels = schedules.explicit(again.process, settings["timesteps"])
    assert_alike(sampled(again, unit, levels, settings["guidance"], captions=[CAPTION])[0], expected)
    sampling, loading = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert f"guidance_scale={guidance - 1:g}," in sampling and (out / FILE).is_file()
    monkeypatch.chdir(out)
    for code in (sampling, re.sub(r"(?m)^pipe = .*\n", loading, sampling)):
        scope: dict[str, Any] = {"TEACHER": str(folder)}
        exec(code.replace("guidance_scale", 'output_type="pt", guidance_scale').replace("image.save", "#"), scope)
        assert_alike(scope["image"], expected)
