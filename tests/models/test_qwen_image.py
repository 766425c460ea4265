"""Qwen-Image against diffusers' own pipeline, and what it is for a student: outlines, adapters, an export."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline
from tiny_models import normal
from tiny_pipelines import run_alone
from tiny_qwen_image import write_qwen_image
from torch import Tensor

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.pipeline import CAPTION
from redif_ray.mlflow_model import Student
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.qwen_image import NO_CAPTION, TOKENS
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.models.student import enable_checkpointing, get_weights, make_student, set_weights, trainable
from redif_ray.planning import timing

pytestmark = pytest.mark.slow
CAPTIONS = ["a cat", "a very long caption about dogs"]
LONG = "a " * (TOKENS + 100)
SIZE, STEPS = (24, 40), 4
EXACT = 2e-5  # of a pixel's range
ADAPTERS = Lora(rank=2, alpha=6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen_image(tmp_path_factory.mktemp("qwen") / "teacher")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = QwenImagePipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder, size=SIZE)


def sampled(model: Any, captions: list[str], unit: Tensor, schedule: Schedule, guidance: float) -> Tensor:
    with torch.no_grad():
        predict = model.predictor(model.encode(captions), guidance)
        return model.decode(solvers.sample("euler", predict, unit, schedule))


@pytest.mark.parametrize(("guidance", "size"), [(1.0, SIZE), (2.5, SIZE), (2.5, (32, 32))])
def test_the_image_is_the_pipeline_s(guidance: float, size: tuple[int, int], folder: Path, pipeline: Any) -> None:
    model = load_model(folder, size=size)
    unit = normal(2, *model.latent_shape)
    expected = pipeline(
        CAPTIONS,
        negative_prompt=[NO_CAPTION] * 2 if guidance > 1 else None,
        true_cfg_scale=guidance,
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        latents=pipeline._pack_latents(unit, *unit.shape),
        output_type="pt",
    ).images
    schedule = schedules.build(model.process, STEPS, "uniform_trailing")
    found = sampled(model, CAPTIONS, unit, schedule, guidance)
    assert found.shape == (2, 3, *size)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.5
    assert float((found[0] - found[1]).abs().max()) > 0.02
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_guidance_keeps_the_norm_of_each_token(model: Any) -> None:
    cond, uncond = normal(2, *model.latent_shape), normal(2, *model.latent_shape, seed=1)
    found, plain = model.guided(cond, uncond, 3.0), uncond + 3 * (cond - uncond)
    for row, column in ((0, 0), (2, 3)):
        token = (slice(None), slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        own, mixed = cond[token].flatten(1), plain[token].flatten(1)
        expected = mixed * own.norm(dim=1, keepdim=True) / mixed.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[token].flatten(1), expected)


def test_images_and_latents(model: Any, pipeline: Any) -> None:
    """Latents have the statistics that diffusers' pipelines for images of images give them."""
    z = normal(2, *model.latent_shape)
    torch.testing.assert_close(model.from_vae(model.to_vae(z)), z)
    images = model.decode(z).detach()
    vae = pipeline.vae
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = (vae.encode(2 * images[:, :, None] - 1).latent_dist.mode() - mean) / std
    torch.testing.assert_close(model.encode_images(images), expected[:, :, 0])


def test_captions_have_their_own_lengths(folder: Path, model: Any) -> None:
    """A caption's states depend on no other of its batch, the mask tells how many it has, and `cut_short` which end."""
    alone, among = model.encode(["a cat"]), load_model(folder, size=SIZE).encode(["dogs and dogs", None, "a cat"])
    states, mask = alone["encoder_hidden_states"], alone["encoder_hidden_states_mask"]
    length = len(model.part("tokenizer")("a cat").input_ids) + 5  # which the template ends in
    assert states.shape[1] == length
    assert bool(mask.all()) and among["encoder_hidden_states_mask"].sum(1).tolist()[2] == length
    assert torch.equal(among["encoder_hidden_states"][2, :length], states[0])
    assert not among["encoder_hidden_states"][2, length:].any()
    none, blank = model.null_conditions(1), model.encode([NO_CAPTION])
    assert all(torch.equal(none[key], blank[key]) for key in none)
    assert model.cut_short(["a cat", LONG]) == [LONG]
    with pytest.raises(ModelError, match="condition 3: expected a caption"):
        model.encode([3])


def test_padding_changes_no_prediction(model: Any) -> None:
    x, level = normal(2, *model.latent_shape), model.process.at(torch.tensor(600.0))
    with torch.no_grad():
        both = model.predict(x, level, model.encode(CAPTIONS)).eps
        alone = model.predict(x[:1], level, model.encode(CAPTIONS[:1])).eps
    torch.testing.assert_close(both[:1], alone, rtol=1e-5, atol=1e-5)


def test_times_in_16_bits_are_the_pipeline_s(folder: Path) -> None:
    """It rounds them to bfloat16 before and after the division by 1000, and a student must meet no others later."""
    half = load_model(folder, dtype=torch.bfloat16, size=SIZE)
    pipeline = QwenImagePipeline.from_pretrained(folder, use_safetensors=True, dtype=torch.bfloat16)
    told: list[list[Tensor]] = [[], []]
    for network, times in zip((pipeline.transformer, half.network), told, strict=True):
        network.register_forward_pre_hook(lambda *call, to=times: to.append(call[2]["timestep"]), with_kwargs=True)
    sigmas = [1.0, 0.6859, 0.4003, 0.09]  # 0.6859 is 0.6875 if it is rounded once, 0.6836 if twice
    options: Any = {"height": SIZE[0], "width": SIZE[1], "output_type": "latent"}
    pipeline.scheduler.register_to_config(use_dynamic_shifting=False, shift_terminal=None)
    pipeline("a cat", sigmas=sigmas, true_cfg_scale=1.0, **options)
    schedule = schedules.explicit(half.process, [1000 * sigma for sigma in sigmas])
    sampled(half, ["a cat"], normal(1, *half.latent_shape), schedule, 1.0)
    assert torch.cat(told[0]).tolist() == torch.cat(told[1]).tolist() and len(told[0]) == STEPS


def test_outlines_have_the_shapes_of_the_longest_caption(folder: Path, model: Any) -> None:
    outline: Any = teacher_outline(Teacher(model=str(folder), height=SIZE[0], width=SIZE[1]), check=True)
    encoded, longest = outline.encode(["a cat", None]), model.encode([LONG, None])
    shapes = {name: (value.shape, value.dtype) for name, value in longest.items()}
    for found in (encoded, outline.blank(2), model.blank(2)):
        assert {name: (value.shape, value.dtype) for name, value in found.items()} == shapes
    x = torch.empty(2, *outline.latent_shape, device="meta")
    found = outline.predict(x, outline.process.noisiest(), encoded, guidance=2.0).x0
    assert found.shape == x.shape and outline.decode(found).shape == (2, *outline.image_shape)
    assert outline.encode_images(outline.decode(found)).shape == x.shape
    assert timing._timed_hollow(outline, 1, 1) > 0 and timing._decode_seconds(outline) > 0


@pytest.mark.parametrize("lora", [ADAPTERS, Lora()])
def test_a_fresh_student_predicts_as_its_teacher(lora: Lora, folder: Path, model: Any) -> None:
    """Bit for bit in float32, up to rounding in bfloat16; adapters of the default layers and all weights learn."""
    x, level = normal(2, *model.latent_shape), model.process.at(torch.tensor(625.0))  # in 16 bits, too

    def prediction(each: DiffusionModel) -> Tensor:
        return each.predict(x, level, each.encode(CAPTIONS), guidance=2.0).eps

    expected, student = prediction(model).detach(), make_student(model, lora)
    assert torch.equal(prediction(student), expected)
    moved = {k: w + 0.05 * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
    set_weights(student, moved)
    prediction(student).square().mean().backward()
    first = {k: p.grad for k, p in trainable(student).items() if p.grad is not None and bool(p.grad.any())}
    unused = {
        k
        for k in trainable(student)
        if re.match(r"transformer_blocks.1.(txt_mlp|attn.(to_add_out|add_q_proj|norm_added_q))", k)
    }
    assert first.keys() == trainable(student).keys() - (unused if not lora.rank else set())
    again = make_student(model, lora)
    set_weights(again, moved)
    enable_checkpointing(again)
    prediction(again).square().mean().backward()
    for name, value in first.items():
        torch.testing.assert_close(trainable(again)[name].grad, value, rtol=1e-5, atol=1e-7)

    half = load_model(folder, dtype=torch.bfloat16, size=SIZE)
    with torch.no_grad():
        for found in (prediction(half), prediction(make_student(half, lora))):
            assert found.dtype == torch.float32
            assert 1e-6 < float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("size", "message"),
    [(None, "has no sample_size; set teacher.height and teacher.wi"), ((20, 32), "a QwenImage takes multiples of 8")],
)
def test_a_size_that_it_does_not_take(size: tuple[int, int] | None, message: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(folder, size=size)


def test_a_network_for_another_vae(tmp_path: Path) -> None:
    folder, two = write_qwen_image(tmp_path / "m"), {"latents_mean": [0.0] * 2, "latents_std": [1.0] * 2}
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=2, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], **two
    )
    vae.save_pretrained(folder / "vae")
    with pytest.raises(ModelError, match="in_channels=16; expected 8, of a token of 2 x 2 of the VAE's latents with 2"):
        load_model(folder, size=SIZE)


def test_the_shift_follows_the_tokens_of_an_image(folder: Path) -> None:
    """The levels are those of diffusers' scheduler for images of 1024 x 1024 pixels at the real VAE's scale."""
    model = load_model(folder, size=(512, 512))
    assert model.process.shift == pytest.approx(float(np.exp(0.5 + 0.4 * (4096 - 256) / (8192 - 256))))
    assert model.process.last == 0.02


def ours(model: Any, schedule: Schedule, guidance: float) -> Tensor:
    """The image of the card's caption and noise."""
    unit = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return sampled(model, [CAPTION], unit, schedule, guidance)[0]


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **scope: Any) -> Tensor:
    """The image of the card's code before it becomes 8 bits."""
    floats: dict[str, Any] = dict(scope)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(code.replace("generator=", 'output_type="pt", generator=').replace("image.save", "#"), floats)
    return floats["image"]


@pytest.fixture
def exported(folder: Path, model: Any, tmp_path: Path) -> Callable[..., tuple[Any, Schedule, Path]]:
    def export(lora: Lora, guidance: float) -> tuple[Any, Schedule, Path]:
        student = make_student(model, lora)
        size = 1.0 if lora.rank else 0.1
        weights = {k: w + size * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
        set_weights(student, weights)
        schedule, out = schedules.explicit(student.process, [1000.0, 812.5, 400.25, 90.0]), tmp_path / "student"
        export_student(student, schedule, out, name="tiny", guidance=guidance, teacher=folder, summary=None)
        return student, schedule, out

    return export


@pytest.mark.parametrize(("lora", "guidance"), [(ADAPTERS, 2.5), (Lora(), 1.0)])
def test_the_card_samples_what_the_student_does(
    exported: Callable[..., Any], lora: Lora, guidance: float, folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged or as adapters beside the teacher; so do the exported folder and the model for MLflow."""
    student, schedule, out = exported(lora, guidance)
    expected = ours(student, schedule, guidance)
    assert float((ours(model, schedule, guidance) - expected).abs().max()) > 0.005
    sampling, *loading = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert ('true_cfg_scale=2.5, negative_prompt=" ",' in sampling) == (guidance > 1)
    torch.testing.assert_close(run(sampling, out, monkeypatch), expected, rtol=0, atol=EXACT)
    for lines in loading:
        code = re.sub(r"(?m)^pipe = .*\n", lines, sampling)
        torch.testing.assert_close(run(code, out, monkeypatch, TEACHER=str(folder)), expected, rtol=0, atol=EXACT)
    assert len(loading) == bool(lora.rank)
    again = load_model(out)
    torch.testing.assert_close(ours(again, schedule, guidance), expected, rtol=0, atol=EXACT)
    mlflow = Student()
    mlflow.load_context(SimpleNamespace(artifacts={"student": str(out)}))
    images = mlflow.predict(None, pd.DataFrame({"seed": [3, 0], "caption": ["a cat", CAPTION]}))
    np.testing.assert_allclose(images[1], expected.numpy(), rtol=0, atol=EXACT)


@pytest.mark.long
def test_the_card_needs_diffusers_alone(exported: Callable[..., Any]) -> None:
    student, schedule, out = exported(ADAPTERS, 2.5)
    run_alone([out])
    torch.testing.assert_close(torch.load(out / "image.pt"), ours(student, schedule, 2.5), rtol=0, atol=EXACT)
