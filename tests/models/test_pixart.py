"""PixArt-sigma and PixArt-alpha against their own pipelines in diffusers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
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
from peft import LoraConfig, get_peft_model
from tiny_models import normal
from tiny_pipelines import run_alone
from tiny_pixart import write_pixart

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model, load_teacher

pytestmark = pytest.mark.slow
FINE_TUNES = Path(__file__).parents[2] / "docs" / "fine_tunes.md"
STEPS, WIDE = 4, (24, 32)
TIMES = [999.0, 700.0, 350.0, 100.0]
KINDS = ("sigma", "alpha")
SIZES = {"sigma": (16, 16), "alpha": WIDE}  # alpha's own would be 256 pixels


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_pixart(tmp_path_factory.mktemp(kind), alpha=kind == "alpha") for kind in KINDS}


def pipeline(folder: Path) -> Any:
    made = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    made.set_progress_bar_config(disable=True)
    return made


def called(pipe: Any, size: tuple[int, int], captions: Sequence[str] = CAPTIONS, **options: Any) -> torch.Tensor:
    height, width = size
    return pipe(
        list(captions),
        num_inference_steps=STEPS,
        height=height,
        width=width,
        use_resolution_binning=False,
        output_type="pt",
        **options,
    ).images


@pytest.mark.parametrize(
    ("kind", "size", "guidance"), [("sigma", (16, 16), 1.0), ("sigma", WIDE, 4.5), ("alpha", WIDE, 4.5)]
)
def test_the_image_of_its_own_scheduler(
    folders: dict[str, Path], kind: str, size: tuple[int, int], guidance: float
) -> None:
    model, pipe = loaded(folders[kind], size=size), pipeline(folders[kind])
    pipe.scheduler.set_timesteps(STEPS)
    schedule = schedules.explicit(model.process, pipe.scheduler.timesteps.tolist())
    unit = normal(2, *model.latent_shape)
    captions = CAPTIONS if guidance == 1 else (CAPTIONS[0], LONG)
    expected = called(pipe, size, captions, latents=solvers.initial(schedule, unit), guidance_scale=guidance)
    check_images(sampled(model, unit, schedule, guidance, captions=captions, solver="dpmpp_2m"), expected)


def test_the_image_of_ddim(folders: dict[str, Path]) -> None:
    model, pipe = loaded(folders["sigma"]), pipeline(folders["sigma"])
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    unit, schedule = normal(2, *model.latent_shape), schedules.build(model.process, STEPS, "uniform_trailing")
    expected = called(pipe, (16, 16), latents=solvers.initial(schedule, unit), guidance_scale=4.5)
    check_images(sampled(model, unit, schedule, 4.5), expected)


@pytest.mark.parametrize(("kind", "tokens"), [("sigma", 300), ("alpha", 120)])
def test_encodings(folders: dict[str, Path], kind: str, tokens: int) -> None:
    check_encodings(folders[kind], size=SIZES[kind])
    model = loaded(folders[kind], size=SIZES[kind])
    encoded = model.encode(["a cat"])
    assert encoded["encoder_hidden_states"].shape == (1, tokens, 32)
    assert ("resolution" in encoded) == (kind == "alpha")
    long, longer = "dogs" * 40, "dogs" * 100
    assert model.cut_short([*CAPTIONS, long, longer]) == ([longer] if kind == "sigma" else [long, longer])


def test_latents(folders: dict[str, Path]) -> None:
    check_latents(loaded(folders["sigma"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_students(folders: dict[str, Path], dtype: torch.dtype) -> None:
    check_students(folders["sigma"], dtype)


@pytest.mark.parametrize(("kind", "lora"), [("sigma", LORA), ("alpha", Lora())])
def test_exports(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lora: Lora
) -> None:
    check_export(folders[kind], tmp_path / "student", monkeypatch, TIMES, lora, size=SIZES[kind])


def test_sizes_that_the_pipeline_refuses(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="a PixArtSigma takes multiples of 8"):
        load_model(folders["sigma"], size=(24, 20))


@pytest.mark.long
def test_a_card_needs_diffusers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = write_pixart(tmp_path / "teacher", dtype=torch.bfloat16)
    check_export(teacher, tmp_path / "student", monkeypatch, TIMES, Lora())
    run_alone([tmp_path / "student"])


def test_a_lora_file_is_refused_and_peft_merges_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """The lines of docs/fine_tunes.md: the images are those of the pipeline with the adapters beside its weights."""
    pipe = pipeline(folders["sigma"])
    style = get_peft_model(pipe.transformer, LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        for i, (name, weight) in enumerate(style.named_parameters()):
            if "lora_" in name:
                weight.copy_(0.5 * normal(*weight.shape, seed=i))
    style.save_pretrained(tmp_path / "style")
    file = tmp_path / "style" / "adapter_model.safetensors"
    with pytest.raises(ModelError, match=r"reads no LoRA files; merge it .* name the new folder in teacher\.model"):
        load_teacher(Teacher(model=str(folders["sigma"]), lora={str(file): 1.0}))

    (code,) = re.findall(r"```python\n(from diffusers import PixArt.*?)```", FINE_TUNES.read_text(), re.DOTALL)
    for name, path in {"pixart-sigma/": folders["sigma"], "style/": tmp_path / "style"}.items():
        code = code.replace(f'"{name}"', repr(str(path)))
    exec(code.replace('"pixart-style/"', repr(str(tmp_path / "merged"))), {})
    model = load_model(tmp_path / "merged", size=(16, 16))
    pipe.transformer = style.eval()
    pipe.scheduler.set_timesteps(STEPS)
    schedule, unit = (
        schedules.explicit(model.process, pipe.scheduler.timesteps.tolist()),
        normal(2, *model.latent_shape),
    )
    expected = called(pipe, (16, 16), CAPTIONS, latents=solvers.initial(schedule, unit), guidance_scale=4.5)
    found = sampled(model, unit, schedule, 4.5, captions=CAPTIONS, solver="dpmpp_2m")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # merged weights are rounded
    assert not torch.allclose(
        found, sampled(loaded(folders["sigma"]), unit, schedule, 4.5, solver="dpmpp_2m"), atol=1e-2
    )
