"""FLUX.1 Kontext, whose conditions are pictures with captions, against its own pipeline in diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import FluxKontextPipeline
from family_checks import CAPTIONS, EXACT, LORA, assert_alike, check_latents, sampled, trained
from PIL import Image
from test_export_pipelines import run
from tiny_edits import drawn, kept, png
from tiny_flux import write_kontext
from tiny_models import normal

from redif_ray.config import Lora, Teacher
from redif_ray.data.pictures import PictureStore
from redif_ray.diffusion import schedules
from redif_ray.export import export_student
from redif_ray.export.pipeline import CAPTION
from redif_ray.mlflow_model import Student
from redif_ray.models.edit import PICTURE, EditModel
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.models.student import make_student, trainable
from redif_ray.types import Edit

pytestmark = pytest.mark.slow
STEPS, SIZE, WIDE = 4, (16, 24), (32, 48)
TIMES = [1000.0, 812.5, 400.25, 90.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kontext(tmp_path_factory.mktemp("kontext") / "teacher")


@pytest.fixture(scope="module")
def store() -> PictureStore:
    return PictureStore()


def loaded(folder: Path, store: PictureStore | None, size: tuple[int, int] = SIZE, **options: Any) -> EditModel:
    model = load_model(folder, size=size, **options)
    assert isinstance(model, EditModel)
    model.pictures = store
    return model


@pytest.mark.parametrize(("size", "guidance"), [(SIZE, 2.5), (WIDE, 1.0)])
def test_the_image_is_the_pipeline_s(folder: Path, store: PictureStore, size: tuple[int, int], guidance: float) -> None:
    model = loaded(folder, store, size)
    pipe = FluxKontextPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    unit, edits = normal(2, *model.latent_shape), kept(store, list(CAPTIONS), size)
    expected = pipe(
        prompt=list(CAPTIONS),
        image=[drawn(i, size) for i in range(2)],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=pipe._pack_latents(unit, *unit.shape),
        output_type="pt",
        **model.pipeline_options,
    ).images
    schedule = schedules.build(model.process, STEPS, "uniform_trailing")
    found = sampled(model, unit, schedule, guidance, captions=edits)
    assert found.shape == (2, 3, *size) and model.calls_per_step(guidance) == 1
    assert_alike(found, expected)
    same = [Edit(edit.caption, edits[0].picture) for edit in edits]
    apart = (sampled(model, unit, schedule, guidance, captions=same) - found).flatten(1).abs().amax(1)
    assert float(apart[0]) < EXACT and float(apart[1]) > 5 * EXACT


def test_encodings(folder: Path, store: PictureStore, tmp_path: Path) -> None:
    """They are shared by all processes, of which those that find them need no pictures."""
    model = loaded(folder, store)
    edits = kept(store, [*CAPTIONS, "a cat"], SIZE)
    alone, among = model.encode(edits[:1]), loaded(folder, store).encode([*edits[1:], edits[0]])
    assert all(torch.equal(among[name][2:], value) for name, value in alone.items())
    assert not torch.equal(among[PICTURE][1:2], alone[PICTURE])  # of the same caption
    expected = model.encode_images(store.read(edits[0].picture)[None])
    torch.testing.assert_close(alone[PICTURE], expected, rtol=0, atol=0)

    outline = teacher_outline(Teacher(model=str(folder), height=SIZE[0], width=SIZE[1]), check=True)
    for encoded in (model.blank(2), outline.blank(2)):
        assert {k: (v.shape, v.dtype) for k, v in encoded.items()} == {
            k: (v.shape, v.dtype) for k, v in model.encode(edits[:2]).items()
        }

    half, other = (loaded(folder, pictures, dtype=torch.bfloat16) for pictures in (store, None))
    for each in (half, other):
        each.keep_encodings(tmp_path / "store")
    assert half.store is not None and other.store is not None and half.store.folder == other.store.folder
    made = half.encode(edits)
    assert all(torch.equal(value, made[name]) for name, value in other.encode(edits).items())
    assert not other.parts
    held = half.store.get(edits[0])
    assert held is not None and {value.dtype for value in held.values()} == {torch.bfloat16}
    wide = loaded(folder, store, WIDE, dtype=torch.bfloat16)
    wide.keep_encodings(tmp_path / "store")
    assert wide.store is not None and wide.store.folder != half.store.folder


def test_conditions_of_other_kinds_are_refused(folder: Path, store: PictureStore) -> None:
    model = loaded(folder, store)
    for condition in ("a cat", None, 3):
        with pytest.raises(ModelError, match="expected a caption and a picture, which the caption changes"):
            model.encode([condition])
    with pytest.raises(ModelError, match="a FluxKontext has no store of pictures to read"):
        loaded(folder, None).encode(kept(store, ["a cat"], SIZE))
    model.check_guidance()
    model.network.register_to_config(guidance_embeds=False)
    with pytest.raises(ModelError, match="takes no guidance as an input"):
        model.check_guidance()


def test_latents(folder: Path) -> None:
    check_latents(loaded(folder, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_student_predicts_as_its_teacher(folder: Path, store: PictureStore, dtype: torch.dtype) -> None:
    teacher = loaded(folder, store, dtype=dtype)
    x, level = normal(2, *teacher.latent_shape), teacher.process.at(torch.tensor(500.0))
    encoded = teacher.encode(kept(store, list(CAPTIONS), SIZE))
    with torch.no_grad():
        expected = teacher.predict(x, level, encoded, guidance=2.0).eps
    for lora in (LORA, Lora()):
        student = make_student(teacher, lora)
        found = student.predict(x, level, encoded, guidance=2.0).eps
        bound = 0.0 if dtype == torch.float32 or lora.rank else 0.05 * float(expected.abs().max())
        assert float((found.detach() - expected).abs().max()) <= bound
        found.square().mean().backward()
        reached = [name for name, p in trainable(student).items() if p.grad is not None and bool(p.grad.any())]
        assert len(reached) >= 0.4 * len(trainable(student))


@pytest.mark.parametrize("lora", [LORA, Lora()])
def test_the_card_samples_what_the_student_does(
    folder: Path, store: PictureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora
) -> None:
    student, out = trained(loaded(folder, store), lora), tmp_path / "student"
    schedule = schedules.explicit(student.process, TIMES)
    export_student(student, schedule, out, name="tiny", guidance=2.5, teacher=folder, summary=None)
    (edit,) = kept(store, [CAPTION], SIZE)
    unit = torch.randn(1, *student.latent_shape, generator=torch.Generator().manual_seed(0))
    expected = sampled(student, unit, schedule, 2.5, captions=[edit])
    untrained = sampled(loaded(folder, store), unit, schedule, 2.5, captions=[edit])
    assert float((untrained - expected).abs().max()) > 0.005
    again = loaded(out, store)
    assert_alike(sampled(again, unit, schedule, 2.5, captions=[edit]), expected)
    drawn(0, SIZE).save(out / "picture.png")
    sampling, *loading = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    for lines in ("", *loading):
        code = re.sub(r"(?m)^pipe = .*\n", lines, sampling) if lines else sampling
        assert_alike(run(code, out, monkeypatch, TEACHER=str(folder)), expected[0])
    assert len(loading) == bool(lora.rank)
    mlflow = Student()
    mlflow.load_context(SimpleNamespace(artifacts={"student": str(out)}))
    pictures = [png(drawn(i, SIZE)) for i in (1, 0)]
    rows = pd.DataFrame({"seed": [3, 0], "caption": ["a cat", CAPTION], "picture": pictures})
    assert_alike(torch.from_numpy(mlflow.predict(None, rows))[1], expected[0])


def test_a_picture_of_another_shape_keeps_its_centre(store: PictureStore) -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste((0, 0, 255), (20, 0, 40, 20))
    wide.save(file := store.folder / "wide.png")
    pixels = store.read(store.keep(file.read_bytes(), "wide", (10, 10)))
    assert pixels.shape == (3, 10, 10)
    assert torch.equal(pixels[:, 2:8, 2:8], torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 6, 6))
