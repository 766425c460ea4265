"""Krea 2, base and distilled, against its own pipeline in diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline
from family_checks import (
    CAPTIONS,
    LORA,
    check_export,
    check_images,
    check_latents,
    check_students,
    loaded,
    sampled,
)
from tiny_krea_2 import LAYERS, write_krea_2
from tiny_models import normal
from tiny_pipelines import WIDTH

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules
from redif_ray.models.krea_2 import CLOSING, TOKENS
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import fingerprint, load_model, teacher_outline

pytestmark = pytest.mark.slow
STEPS, SIZE, SQUARE = 4, (24, 40), (32, 32)
TIMES = [1000.0, 812.5, 400.25, 90.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_krea_2(tmp_path_factory.mktemp("krea_2") / "base")


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_krea_2(tmp_path_factory.mktemp("krea_2") / "turbo", is_distilled=True)


@pytest.mark.parametrize(
    ("name", "size", "guidance"), [("folder", SIZE, 1.0), ("folder", SQUARE, 5.5), ("turbo", SIZE, 1.0)]
)
def test_the_image_is_the_pipeline_s(
    name: str, size: tuple[int, int], guidance: float, request: pytest.FixtureRequest
) -> None:
    """The pipeline fills captions up to 512 tokens, and calls a guidance of 5.5 what is 4.5 on top of the caption's."""
    source = request.getfixturevalue(name)
    model = loaded(source, size=size)
    pipe = Krea2Pipeline.from_pretrained(source, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    unit = normal(2, *model.latent_shape)
    expected = pipe(
        list(CAPTIONS),
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance - 1,
        latents=pipe._pack_latents(unit, *unit.shape),
        output_type="pt",
    ).images
    found = sampled(model, unit, schedules.build(model.process, STEPS, "uniform_trailing"), guidance)
    assert found.shape == (2, 3, *size)
    check_images(found, expected)


def test_a_larger_image_shifts_the_levels_of_the_base_model_alone(folder: Path, turbo: Path) -> None:
    base: Any = [load_model(folder, size=size).process for size in (SIZE, SQUARE)]
    fixed: Any = [load_model(turbo, size=size).process for size in (SIZE, SQUARE)]
    assert base[0].shift < base[1].shift < fixed[0].shift == fixed[1].shift == pytest.approx(2.71828**1.15)


def test_times_in_16_bits_are_the_pipeline_s(folder: Path) -> None:
    """It rounds them to bfloat16 after the division by 1000, and a student must meet no others later."""
    half = loaded(folder, dtype=torch.bfloat16, size=SIZE)
    pipe: Any = Krea2Pipeline.from_pretrained(folder, use_safetensors=True, dtype=torch.bfloat16)
    told: list[list[torch.Tensor]] = [[], []]
    for network, times in zip((pipe.transformer, half.network), told, strict=True):
        network.register_forward_pre_hook(lambda *call, to=times: to.append(call[2]["timestep"]), with_kwargs=True)
    sigmas = [1.0, 0.6859, 0.4003, 0.09]  # 0.6859 is 0.6875 if it is rounded once, 0.6836 if twice
    pipe.scheduler.register_to_config(use_dynamic_shifting=False)
    pipe("a cat", sigmas=sigmas, guidance_scale=0.0, height=SIZE[0], width=SIZE[1], output_type="latent")
    schedule = schedules.explicit(half.process, [1000 * sigma for sigma in sigmas])
    sampled(half, normal(1, *half.latent_shape), schedule, 1.0, captions=["a cat"])
    assert torch.cat(told[0]).tolist() == torch.cat(told[1]).tolist() and len(told[0]) == STEPS


def test_a_caption_has_as_many_states_as_tokens(folder: Path) -> None:
    """Neither they nor a prediction depend on the other captions of a batch."""
    model = loaded(folder, size=SIZE)
    alone, among = model.encode(CAPTIONS[:1]), loaded(folder, size=SIZE).encode([CAPTIONS[1], None, CAPTIONS[0]])
    states, mask = among["encoder_hidden_states"], among["encoder_attention_mask"]
    length = len(model.part("tokenizer")(CAPTIONS[0]).input_ids) + CLOSING
    assert alone["encoder_hidden_states"].shape == (1, length, len(LAYERS), WIDTH)
    assert torch.equal(states[2:, :length], alone["encoder_hidden_states"]) and not states[2, length:].any()
    assert mask.sum(1).tolist() == [states.shape[1], CLOSING, length]
    assert torch.equal(states[1:2, :CLOSING], model.null_conditions(1)["encoder_hidden_states"])
    x, level = normal(3, *model.latent_shape), model.process.at(torch.tensor(600.0))
    with torch.no_grad():
        expected = model.predict(x[2:], level, alone).eps
        torch.testing.assert_close(model.predict(x, level, among).eps[2:], expected, rtol=1e-5, atol=1e-5)


def test_a_caption_that_is_cut_short_is_named(folder: Path) -> None:
    model = loaded(folder, size=SIZE)
    pairs = {n: ["a" * (n - 1) + end for end in "bc"] for n in (TOKENS - CLOSING, TOKENS - CLOSING + 1)}
    (fits, longer) = pairs.values()
    assert model.cut_short([*fits, *longer]) == longer
    same = [torch.equal(*model.encode(pair)["encoder_hidden_states"]) for pair in (fits, longer)]
    assert same == [False, True]


def test_encodings_without_data_are_the_longest(folder: Path) -> None:
    model = loaded(folder, size=SIZE)
    outline = teacher_outline(Teacher(model=str(folder), height=SIZE[0], width=SIZE[1]), check=True)
    real = model.encode(["a" * TOKENS, None])
    for encoded in (model.blank(2), outline.encode(["a cat", None])):
        assert {k: (v.shape, v.dtype) for k, v in encoded.items()} == {k: (v.shape, v.dtype) for k, v in real.items()}
    x = torch.empty(2, *outline.latent_shape, device="meta")
    images = outline.decode(outline.predict(x, outline.process.noisiest(), encoded, guidance=2.0).x0)
    assert images.shape == (2, *outline.image_shape) and outline.encode_images(images).shape == x.shape


def test_norms_stay_in_float32_with_and_without_weights(folder: Path) -> None:
    model = load_model(folder, dtype=torch.bfloat16, size=SIZE)
    outline = teacher_outline(Teacher(model=str(folder), height=SIZE[0], width=SIZE[1]), dtype=torch.bfloat16)
    real, hollow = ({k: p.dtype for k, p in each.network.named_parameters()} for each in (model, outline))
    assert hollow == real and set(real.values()) == {torch.float32, torch.bfloat16}


def test_other_layers_of_the_encoder_are_another_teacher(folder: Path, tmp_path: Path) -> None:
    other = write_krea_2(tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"text_encoder_select_layers": [0, 1, 3]}))
    models = [loaded(each, size=SIZE) for each in (folder, other)]
    first, second = (model.encode(CAPTIONS[:1])["encoder_hidden_states"] for model in models)
    assert first.shape == second.shape and not torch.equal(first, second)
    assert fingerprint(models[0]) != fingerprint(models[1])
    for model in models:
        model.keep_encodings(tmp_path / "store")
    assert models[0].store is not None and models[1].store is not None
    assert models[0].store.folder != models[1].store.folder


def test_latents(folder: Path) -> None:
    check_latents(loaded(folder, size=SIZE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_students(folder: Path, dtype: torch.dtype) -> None:
    check_students(folder, dtype, size=SIZE)


@pytest.mark.parametrize("lora", [LORA, Lora()])
def test_exports(turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora) -> None:
    check_export(turbo, tmp_path / "student", monkeypatch, TIMES, lora, size=SIZE)
    assert "transformers accelerate`" in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize(
    ("size", "message"),
    [(None, "has no sample_size; set teacher.height and teacher.wi"), ((20, 32), "a Krea2 takes multiples of 8")],
)
def test_a_size_that_it_does_not_take(size: tuple[int, int] | None, message: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(folder, size=size)
