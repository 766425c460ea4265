"""FLUX.1 and Chroma against diffusers' own pipelines, called as their users call them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline, FluxPipeline
from tiny_flux import write_chroma, write_flux
from tiny_models import normal
from torch import Tensor

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.pipeline import CAPTION
from redif_ray.mlflow_model import Student
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model, replaced, teacher_outline
from redif_ray.models.student import enable_checkpointing, get_weights, make_student, set_weights, trainable
from redif_ray.models.text import TextModel

WRITE: dict[str, Callable[..., Path]] = {
    "dev": write_flux,
    "schnell": lambda folder, **options: write_flux(folder, dev=False, **options),
    "chroma": write_chroma,
}
NAMES = tuple(WRITE)
TWO = mostly_long(NAMES, lambda name: name != "schnell")
CALLS: dict[tuple[str, float], dict[str, Any]] = {  # of pipelines, as the models' cards and diffusers' documentation do
    ("dev", 3.5): {"guidance_scale": 3.5},
    ("dev", 1.0): {"guidance_scale": 1.0},
    ("schnell", 1.0): {"guidance_scale": 0.0, "max_sequence_length": 256},
    ("schnell", 3.0): {"true_cfg_scale": 3.0, "negative_prompt": ["", ""], "max_sequence_length": 256},
    ("chroma", 3.0): {"guidance_scale": 3.0},
    ("chroma", 1.0): {"guidance_scale": 1.0},
}
CAPTIONS = ["a cat", "a very long caption about dogs"]
SIZE, SQUARE, STEPS = (16, 24), (16, 16), 4
EXACT = 1e-5  # of a pixel's range
ADAPTERS = Lora(rank=2, alpha=7.0)
TIMES = [1000.0, 812.5, 400.25, 90.0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flux")
    return {name: write(root / name) for name, write in WRITE.items()}


def model_of(folder: Path, size: tuple[int, int] = SIZE, **options: Any) -> TextModel:
    model = load_model(folder, size=size, **options)
    assert isinstance(model, TextModel)
    return model


def sampled(model: DiffusionModel, captions: list[str], unit: Tensor, schedule: Schedule, guidance: float) -> Tensor:
    encoded = model.encode(list(captions))
    with torch.no_grad():
        return model.decode(solvers.sample("euler", model.predictor(encoded, guidance), unit, schedule))


@cache
def pipeline_of(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guidance", "size"),
    mostly_long(
        ((*call, size) for call, size in product(CALLS, (SIZE, SQUARE))),
        lambda name, guidance, size: size == (SQUARE if (name, guidance) == ("chroma", 1.0) else SIZE),
    ),
)
def test_the_image_is_the_pipeline_s(
    name: str, guidance: float, size: tuple[int, int], folders: dict[str, Path]
) -> None:
    """Its own schedule of four steps; the noise is packed by its own method."""
    model = model_of(folders[name], size)
    unit = normal(2, *model.latent_shape)
    expected = pipeline_of(folders[name])(
        CAPTIONS,
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        latents=FluxPipeline._pack_latents(unit, *unit.shape),
        output_type="pt",
        **CALLS[name, guidance],
    ).images
    schedule = schedules.build(model.process, STEPS, "uniform_trailing")
    found = sampled(model, CAPTIONS, unit, schedule, guidance)
    assert found.shape == (2, 3, *size)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.5  # the oracle says something
    assert float((found[0] - found[1]).abs().max()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_is_as_the_pipeline_s(name: str, folders: dict[str, Path]) -> None:
    model = model_of(folders[name])
    embeds = name == "dev"
    assert model.embeds_guidance is embeds and model.calls_per_step(3.0) == (1 if embeds else 2)
    assert (
        model.pipeline_guidance(3.0)
        == {
            "dev": {"guidance_scale": 3.0, "max_sequence_length": 512},
            "schnell": {"true_cfg_scale": 3.0, "negative_prompt": "", "max_sequence_length": 256},
            "chroma": {"guidance_scale": 3.0},
        }[name]
    )
    model.check_guidance()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"has no sample_size; set teacher.height and teacher.width"):
        load_model(folders[name])
    with pytest.raises(ModelError, match=r"takes multiples of 4; set .*, 16 x 24 for instance"):
        load_model(folders[name], size=(18, 26))
    small, large = model_of(folders[name], SQUARE), model_of(folders[name], (32, 32))
    assert (small.process.shift == large.process.shift == 1.0) == (name == "schnell")  # type: ignore[attr-defined]


def test_a_family_of_the_user_s_own_comes_first(folders: dict[str, Path]) -> None:
    model = load_model(folders["dev"], family=f"{Path(__file__).parents[1] / 'flux_family.py'}:load")
    assert type(model).__name__ == "Flux" and model.latent_shape == (4, 128, 128)
    assert replaced(model) == (
        "flux_family.py:load loads the FluxPipeline in place of redif-ray's own redif_ray.models.flux:Flux"
    )


@pytest.mark.parametrize("name", NAMES)
def test_images_of_latents(name: str, folders: dict[str, Path]) -> None:
    """`from_vae` is the inverse of `to_vae`, and encoding uses it."""
    model = model_of(folders[name])
    z = normal(2, *model.latent_shape)
    torch.testing.assert_close(model.from_vae(model.to_vae(z)), z)
    torch.testing.assert_close(model.to_vae(z), z / 0.3611 + 0.1159)
    images = model.decode(z)
    mode = model.part("vae").encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(model.encode_images(images), (mode - 0.1159) * 0.3611)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_outlines_have_the_shapes_of_real_encodings(name: str, folders: dict[str, Path]) -> None:
    model = model_of(folders[name])
    blank = model.blank(2)
    assert not model.parts
    outline = teacher_outline(Teacher(model=str(folders[name]), height=SIZE[0], width=SIZE[1]), check=True)
    assert outline.latent_shape == model.latent_shape == (4, 8, 12)
    drawn, x = outline.encode(["a", None]), torch.empty(2, *outline.latent_shape, device="meta")
    assert {value.device.type for value in drawn.values()} == {"meta"}
    assert outline.predict(x, outline.process.noisiest(), drawn, guidance=2.0).x0.shape == x.shape
    real = model.encode(["a cat", None])
    for found in (blank, drawn):
        assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in real.items()}
    assert real["encoder_hidden_states"].shape == (2, 256 if name == "schnell" else 512, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_a_caption_s_encoding_does_not_depend_on_its_company(name: str, folders: dict[str, Path]) -> None:
    first, second = model_of(folders[name]), model_of(folders[name])
    alone, among = first.encode(["a cat"]), second.encode(["a dog", None, "a cat", CAPTIONS[1]])
    for key, value in alone.items():
        assert torch.equal(among[key][2:3], value)
        assert torch.equal(among[key][1:2], second.null_conditions(1)[key])
    long = "dogs " * 150
    assert first.cut_short([*CAPTIONS, long]) == [long]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TWO)
def test_a_fresh_student_predicts_as_the_teacher(name: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    """Bit for bit with adapters; a student with weights of its own is bit for bit equal in float32."""
    teacher = model_of(folders[name], dtype=dtype)
    x, encoded = normal(2, *teacher.latent_shape), teacher.encode(CAPTIONS)
    level = teacher.process.at(torch.tensor([1000.0, 300.0]))  # a level for each row

    def prediction(model: DiffusionModel) -> Tensor:
        return model.predict(x, level, encoded, guidance=2.5).x0

    expected = prediction(teacher)
    adapted, whole = make_student(teacher, ADAPTERS), make_student(teacher, Lora())
    assert torch.equal(prediction(adapted), expected)
    difference = float((prediction(whole).detach() - expected).abs().max())
    assert difference < (0.05 * float(expected.abs().max()) if dtype == torch.bfloat16 else 1e-30)
    set_weights(adapted, {k: w + 0.1 for k, w in get_weights(adapted).items()})
    prediction(adapted).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trainable(adapted).values())
    assert {k.split(".lora")[0].rpartition("attn.")[2] for k in trainable(adapted)} == {
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    }
    with pytest.raises(ModelError, match=r"targets=\['to_kv'\] match no layer of .*, which has .*to_q"):
        make_student(teacher, Lora(rank=2, targets=("to_kv",)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_checkpointing_changes_no_prediction_and_no_gradient(name: str, folders: dict[str, Path]) -> None:
    """Also not where a microbatch of other captions is predicted before the backward pass."""
    teacher = model_of(folders[name])
    x, level = normal(2, *teacher.latent_shape), teacher.process.noisiest()

    def run(student: DiffusionModel) -> dict[str, Tensor]:
        first = student.predict(x, level, student.encode(CAPTIONS), guidance=2.0).x0
        second = student.predict(x, level, student.encode(["x", None]), guidance=2.0).x0
        (first.square().mean() + second.mean()).backward()
        return {k: p.grad for k, p in trainable(student).items() if p.grad is not None} | {"x0": first.detach()}

    plain, saving = make_student(teacher, Lora()), make_student(teacher, Lora())
    enable_checkpointing(saving)
    expected, found = run(plain), run(saving)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guidance"), mostly_long(product(NAMES, (1.0, 2.5)), lambda name, guidance: guidance > 1)
)
def test_an_exported_student(name: str, guidance: float, folders: dict[str, Path], tmp_path: Path) -> None:
    """The card's code, the adapters beside the teacher, MLflow's model and redif-ray make the student's images."""
    student = make_student(model_of(folders[name]), ADAPTERS)
    moved = {k: w + normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
    unit = torch.randn(1, *student.latent_shape, generator=torch.Generator().manual_seed(0))
    schedule = schedules.explicit(student.process, TIMES)
    before = sampled(student, [CAPTION], unit, schedule, guidance)
    set_weights(student, moved)
    expected, folder = sampled(student, [CAPTION], unit, schedule, guidance), tmp_path / "student"
    assert float((expected - before).abs().max()) > 0.005
    export_student(student, schedule, folder, name="x", guidance=guidance, teacher=folders[name], summary=None)
    torch.testing.assert_close(
        sampled(load_model(folder), [CAPTION], unit, schedule, guidance), expected, rtol=0, atol=EXACT
    )

    sampling, loading = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(sampling.strip().splitlines()) <= 15 and "redif" not in sampling
    code = sampling.replace("generator=", 'output_type="pt", generator=').replace("image.save", "#")
    code = code.replace('"."', repr(str(folder)))
    for text in (code, re.sub(r"(?m)^pipe = .*\n", lambda _: loading, code)):
        scope: dict[str, Any] = {"TEACHER": str(folders[name])}
        exec(text, scope)
        torch.testing.assert_close(scope["image"], expected[0], rtol=0, atol=EXACT)
    settings = json.loads((folder / "redif.json").read_text())
    assert (settings["height"], settings["width"]) == SIZE

    model = Student()
    model.load_context(SimpleNamespace(artifacts={"student": str(folder)}))
    images = model.predict(None, pd.DataFrame({"seed": [3, 0], "caption": ["a cat", CAPTION]}))
    np.testing.assert_allclose(images[1], expected[0].numpy(), rtol=0, atol=EXACT)
