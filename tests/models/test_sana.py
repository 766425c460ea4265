"""SANA against its own pipeline in diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from family_checks import (
    CAPTIONS,
    LONG,
    LORA,
    check_encodings,
    check_export,
    check_images,
    check_latents,
    check_students,
    loaded,
    sampled,
)
from tiny_models import normal
from tiny_pipelines import run_alone
from tiny_sana import write_sana

from redif_ray.config import Lora
from redif_ray.diffusion import schedules, solvers
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model

pytestmark = pytest.mark.slow
STEPS, OWN, WIDE = 4, (64, 64), (64, 96)
TIMES = [1000.0, 812.5, 400.25, 90.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sana(tmp_path_factory.mktemp("sana"))


def pipeline(folder: Path) -> Any:
    made = SanaPipeline.from_pretrained(folder, use_safetensors=True)
    made.set_progress_bar_config(disable=True)
    return made


def called(pipe: Any, size: tuple[int, int], captions: Sequence[str] = CAPTIONS, **options: Any) -> torch.Tensor:
    height, width = size
    return pipe(
        list(captions), height=height, width=width, use_resolution_binning=False, output_type="pt", **options
    ).images


@pytest.mark.parametrize(("size", "guidance"), [(OWN, 1.0), (WIDE, 4.5)])
def test_the_image_is_the_pipeline_s(folder: Path, size: tuple[int, int], guidance: float) -> None:
    model, pipe = loaded(folder, size=size), pipeline(folder)
    assert model.latent_shape == (8, size[0] // 32, size[1] // 32)
    unit, schedule = normal(2, *model.latent_shape), schedules.build(model.process, STEPS, "uniform_trailing")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigmas = [1 - i / STEPS for i in range(STEPS)]
    captions = CAPTIONS if guidance == 1 else (CAPTIONS[0], LONG)
    expected = called(pipe, size, captions, latents=unit, sigmas=sigmas, guidance_scale=guidance)
    check_images(sampled(model, unit, schedule, guidance, captions=captions), expected)


def test_the_image_of_its_own_scheduler(folder: Path) -> None:
    """DPM-Solver++ starts at a sigma of 0.9997 with unscaled noise, and calls the network at whole timesteps."""
    model, pipe = loaded(folder), pipeline(folder)
    pipe.scheduler.set_timesteps(STEPS)
    levels, times = (1000 * pipe.scheduler.sigmas[:-1].double()).tolist(), pipe.scheduler.timesteps.tolist()
    schedule = schedules.explicit(model.process, levels, network_timesteps=times)
    unit = normal(2, *model.latent_shape)
    latents = solvers.initial(schedule, unit)
    expected = called(pipe, OWN, latents=latents, num_inference_steps=STEPS, guidance_scale=4.5)
    check_images(sampled(model, unit, schedule, 4.5, solver="dpmpp_2m"), expected)


def test_a_caption_is_read_after_the_instruction_and_none_without_it(folder: Path) -> None:
    model = loaded(folder)
    caption, none = model.encode([""]), model.encode([None])
    assert int(caption["encoder_attention_mask"].sum()) == 2  # the first token and the instruction's last one
    assert int(none["encoder_attention_mask"].sum()) == 1
    assert caption["encoder_hidden_states"].shape == (1, 300, 16)
    assert model.cut_short([*CAPTIONS, LONG]) == [LONG]


def test_encodings(folder: Path) -> None:
    check_encodings(folder)


def test_latents(folder: Path) -> None:
    check_latents(loaded(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_students(folder: Path, dtype: torch.dtype) -> None:
    check_students(folder, dtype)


@pytest.mark.parametrize(("lora", "size"), [(LORA, None), (Lora(), WIDE)])
def test_exports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora, size: tuple[int, int] | None
) -> None:
    check_export(folder, tmp_path / "student", monkeypatch, TIMES, lora, size=size)


def test_sizes_that_the_pipeline_refuses(folder: Path) -> None:
    with pytest.raises(ModelError, match="a Sana takes multiples of 32"):
        load_model(folder, size=(64, 80))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "epsilon"}, "use_flow_sigmas=true and prediction_type='epsilon'; expected flow_pred"),
        ({"use_flow_sigmas": False}, "the scheduler is a DPMSolverMultistepScheduler; .*, or one with use_flow_sigmas"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting=True, which is not supported"),
        ({"thresholding": True}, "thresholding=True, which is not supported"),
    ],
)
def test_a_scheduler_of_another_process(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_sana(tmp_path) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.long
def test_a_card_needs_diffusers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = write_sana(tmp_path / "teacher", dtype=torch.bfloat16)
    check_export(teacher, tmp_path / "student", monkeypatch, TIMES, LORA)
    run_alone([tmp_path / "student"])
