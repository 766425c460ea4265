"""FLUX.2 klein and dev against diffusers' own pipeline, called as its users call it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import SYSTEM_MESSAGE
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from test_export_pipelines import blocks, ours, run, trained
from tiny_flux_2 import write_flux_2_dev, write_flux_2_klein
from tiny_models import normal
from tiny_pipelines import WIDTH, put_in_index
from torch import Tensor

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.models.flux_2 import Flux2
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.models.student import make_student, trainable

pytestmark = pytest.mark.slow
CAPTIONS = ["a cat", "a very long caption about dogs"]
STEPS = 4
SIZE = (24, 32)
EXACT = 2e-5  # of a pixel's range: both round in float32
LAYERS = Lora(rank=2, alpha=7.0, targets=("to_q", "to_v", "to_qkv_mlp_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_2_klein(tmp_path_factory.mktemp("flux_2") / "base")


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In `dev` as the model is published; in `plain` its index names a tokeniser, for want of torchvision here."""
    folder = tmp_path_factory.mktemp("flux_2_dev")
    shutil.copytree(write_flux_2_dev(folder / "plain"), folder / "dev")
    put_in_index(folder / "dev", tokenizer=["transformers", "PixtralProcessor"])
    return folder


def loaded(folder: Path, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> Flux2:
    model = load_model(folder, size=size, dtype=dtype)
    assert isinstance(model, Flux2)
    return model


def stock(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(model: Flux2, unit: Tensor, guidance: float) -> Tensor:
    schedule = schedules.build(model.process, STEPS, "uniform_trailing")
    with torch.no_grad():
        predict = model.predictor(model.encode(CAPTIONS), guidance)
        return model.decode(solvers.sample("euler", predict, unit, schedule))


@pytest.mark.parametrize(
    ("name", "guidance", "size"), [("klein", 1.0, (16, 16)), ("klein", 4.0, SIZE), ("dev", 2.5, SIZE)]
)
def test_the_image_is_the_pipeline_s(name: str, guidance: float, size: tuple[int, int], base: Path, dev: Path) -> None:
    own, published = (base, base) if name == "klein" else (dev / "dev", dev / "plain")
    model = loaded(own, size)
    assert model.calls_per_step(guidance) == (2 if name == "klein" and guidance > 1 else 1)
    unit = normal(2, *model.latent_shape)
    expected = stock(published)(
        prompt=CAPTIONS,
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=unit,
        output_type="pt",
    ).images
    found = sampled(model, unit, guidance)
    assert found.shape == (2, 3, *size)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.5  # the oracle says something
    assert float((found[0] - found[1]).abs().max()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_a_distilled_klein_has_no_guidance(tmp_path: Path) -> None:
    """Its pipeline ignores the scale that it is told."""
    folder = write_flux_2_klein(tmp_path / "distilled", distilled=True)
    model = loaded(folder, (16, 16))
    unit = normal(2, *model.latent_shape)
    options = {"height": 16, "width": 16, "num_inference_steps": STEPS, "output_type": "pt"}
    expected = stock(folder)(prompt=CAPTIONS, guidance_scale=4.0, latents=unit, **options).images
    torch.testing.assert_close(sampled(model, unit, 1.0), expected, rtol=0, atol=EXACT)
    for call in (model.check_guidance, lambda: sampled(model, unit, 4.0)):
        with pytest.raises(ModelError, match=r"distilled to make images without guidance .*; expected 1"):
            call()


@pytest.mark.parametrize(
    ("steps", "tokens"), [(1, (6, 8)), (4, (64, 64)), (50, (64, 64)), (4, (72, 60)), (50, (72, 60))]
)
def test_levels_are_shifted_by_size_and_steps(steps: int, tokens: tuple[int, int], base: Path) -> None:
    """Beyond 4300 tokens by size alone."""
    model = loaded(base, tuple(4 * edge for edge in tokens))
    mu = compute_empirical_mu(tokens[0] * tokens[1], steps)
    model.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    found = schedules.build(model.process, steps, "uniform_trailing").levels
    torch.testing.assert_close(found.sigma.float(), model.scheduler.sigmas, rtol=0, atol=1e-6)


def test_a_scheduler_without_dynamic_shifting_shifts_by_its_own_number(tmp_path: Path) -> None:
    process: Any = loaded(write_flux_2_klein(tmp_path / "static", dynamic=False)).process
    assert (process.shift, process.growth) == (3.0, 0.0)


def test_without_a_size_images_are_those_that_the_pipeline_makes(base: Path) -> None:
    model, pipeline = load_model(base), stock(base)
    edge = pipeline.default_sample_size * pipeline.vae_scale_factor
    assert model.image_shape == (3, edge, edge) and model.latent_shape == (16, 64, 64)
    with pytest.raises(ModelError, match=r"a Flux2Klein takes multiples of 4; .* 24 x 32 for instance"):
        model.at_size(26, 32)


def test_images_go_through_the_vae_s_batch_norm_both_ways(base: Path) -> None:
    model, pipeline = loaded(base), stock(base)
    z = normal(2, *model.latent_shape)
    assert model.to_vae(z).shape == (2, 4, 12, 16)
    torch.testing.assert_close(model.from_vae(model.to_vae(z)), z, rtol=0, atol=1e-5)
    with torch.no_grad():
        images = model.decode(z)
        expected = pipeline._encode_vae_image(2 * images - 1, generator=None)
        torch.testing.assert_close(model.encode_images(images), expected, rtol=0, atol=1e-5)


def test_an_outline_has_the_shapes_of_the_model(base: Path) -> None:
    model = loaded(base)
    outline = teacher_outline(Teacher(model=str(base), height=SIZE[0], width=SIZE[1]), check=True)
    real = {name: value.shape for name, value in model.encode(CAPTIONS).items()}
    assert real == {"encoder_hidden_states": (2, 512, 3 * WIDTH)}
    for encoded in (model.blank(2), outline.encode(CAPTIONS), outline.blank(2)):
        assert {name: value.shape for name, value in encoded.items()} == real
    x = torch.empty(2, *outline.latent_shape, device="meta")
    assert outline.predict(x, outline.process.noisiest(), outline.blank(2), guidance=4.0).x0.shape == x.shape
    images = outline.decode(x)
    assert images.shape == (2, 3, *SIZE) and outline.encode_images(images).shape == x.shape


def test_a_fresh_student_predicts_as_its_teacher(base: Path) -> None:
    whole = loaded(base)
    x, level = normal(2, *whole.latent_shape), whole.process.at(torch.tensor(600.0))
    encoded = whole.encode(CAPTIONS)
    expected = whole.predict(x, level, encoded, guidance=2.0).eps
    for dtype in (torch.float32, torch.bfloat16):
        teacher = loaded(base, dtype=dtype)
        own = teacher.predict(x, level, encoded, guidance=2.0).eps
        for lora in (Lora(rank=2), LAYERS, Lora()):
            student = make_student(teacher, lora)
            found = student.predict(x, level, encoded, guidance=2.0).eps
            assert torch.equal(found, own) or (dtype is torch.bfloat16 and not lora.rank)
            assert float((found - expected).detach().abs().max()) < 0.05 * float(expected.abs().max())
            found.square().mean().backward()
            assert all(p.grad is not None for p in trainable(student).values())
    with pytest.raises(ModelError, match=r"\['to_x'\] match no layer of Flux2Transformer2DModel, .*'to_qkv_mlp_proj'"):
        make_student(whole, Lora(rank=2, targets=("to_x",)))


def test_a_caption_s_encoding_does_not_depend_on_its_company(base: Path) -> None:
    first, second = loaded(base), loaded(base)
    alone, among = first.encode(CAPTIONS[:1]), second.encode([CAPTIONS[1], None, CAPTIONS[0]])
    for name, value in alone.items():
        assert torch.equal(among[name][2:], value)
        assert torch.equal(among[name][1:2], second.null_conditions(1)[name])


@pytest.mark.parametrize(("name", "room"), [("klein", 509), ("dev", 508 - len(SYSTEM_MESSAGE))])
def test_a_caption_is_cut_short_where_the_network_does_not_see_its_end(
    name: str, room: int, base: Path, dev: Path
) -> None:
    model = loaded(base if name == "klein" else dev / "dev")
    pairs = {n: ["a" * (n - 1) + end for end in "bc"] for n in (room, room + 1)}
    assert model.cut_short([*pairs[room], *pairs[room + 1]]) == pairs[room + 1]
    same = {n: torch.equal(*model.encode(pair)["encoder_hidden_states"]) for n, pair in pairs.items()}
    assert same == {room: False, room + 1: True}


@pytest.mark.parametrize(
    ("name", "lora", "guidance"),
    mostly_long(
        [("klein", LAYERS, 2.5), ("klein", Lora(), 1.0), ("dev", LAYERS, 2.5)],
        lambda name, lora, _: name == "klein" and lora is LAYERS,
    ),
)
def test_the_card_samples_what_the_student_does(
    name: str, lora: Lora, guidance: float, base: Path, dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards sample with diffusers alone, from the whole folder and from the adapters beside the teacher."""
    teacher = base if name == "klein" else dev / "plain"
    student = trained(loaded(teacher), lora)
    schedule = schedules.explicit(student.process, [1000.0, 812.5, 400.25, 90.0])
    folder = tmp_path / "student"
    export_student(student, schedule, folder, name="x", guidance=guidance, teacher=teacher, summary=None)
    expected = ours(student, schedule, guidance)
    assert float((ours(loaded(teacher), schedule, guidance) - expected).abs().max()) > 0.005
    torch.testing.assert_close(ours(load_model(folder), schedule, guidance), expected, rtol=0, atol=EXACT)
    sampling, *loading = blocks(folder)
    codes = [sampling, *(re.sub(r"(?m)^pipe = .*\n", lines, sampling) for lines in loading)]
    assert len(codes) == 1 + (lora.rank > 0)
    for code in codes:
        found = run(code, folder, monkeypatch, TEACHER=str(teacher))
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert ("transformers torchvision`" in (folder / "README.md").read_text()) == (name == "dev")
