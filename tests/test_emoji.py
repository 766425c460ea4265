"""The shipped emoji teacher, its captions and its encoders."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from tiny_pipelines import run_alone
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.emoji.data import held_out
from redif_ray.config import load
from redif_ray.data.conditions import load_conditions
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.export.pipeline import CAPTION
from redif_ray.models.registry import load_model
from redif_ray.sample import draw

ASSETS = Path(__file__).parent.parent / "redif_ray" / "assets"
GUIDANCE = 2.0


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_model("emoji")


def clip(name: str) -> tuple[Any, Any]:
    folder = ASSETS / "encoders" / f"emoji_clip_{name}"
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder)


def captions(name: str) -> list[str]:
    return (ASSETS / "captions" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def test_the_teacher_and_its_distillation_hold_the_same_captions_out() -> None:
    config = load("emoji_4step")
    drawn = load_conditions(config.conditions, num_classes=None, captions=True, seed=config.run.seed)
    everything = captions("emoji")
    assert {*drawn.training, *drawn.held_out} == set(everything) and len(set(everything)) == len(everything) == 1911
    assert len(drawn.held_out) == 200
    assert [caption for caption in everything if held_out(caption)] == list(drawn.held_out)


@pytest.mark.slow
def test_every_caption_fits_the_tokenizer(teacher: Any) -> None:
    tokenizer = teacher.pipeline.tokenizer
    assert len(tokenizer("red apple").input_ids) > 3  # start, end, and more than one token
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == teacher.pipeline.text_encoder.config.eos_token_id
    cut = [caption for caption in captions("emoji") if len(tokenizer(caption).input_ids) > tokenizer.model_max_length]
    assert len(cut) < 5
    assert tokenizer.unk_token_id not in tokenizer("Ω 日本", add_special_tokens=False).input_ids


@pytest.mark.slow
def test_text_encoder_of_the_teacher_is_the_one_of_clip_a(teacher: Any) -> None:
    model, tokenizer = clip("a")
    own = teacher.encode(["red apple"])["encoder_hidden_states"]
    ids = tokenizer("red apple", padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    assert own.shape == (1, 16, model.config.text_config.hidden_size)
    torch.testing.assert_close(own, model.text_model(input_ids=ids).last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b"])
def test_teacher_draws_what_the_caption_says(teacher: Any, name: str) -> None:
    said = ["red apple", "grinning face", "flag: japan", "blue heart", "dog face", "pizza", "snowman", "green book"]
    schedule = schedules.build(teacher.process, 10, "uniform_trailing")
    drawn = draw(teacher, schedule, list(range(len(said))), list(said), 0, GUIDANCE)
    assert drawn.shape == (len(said), 3, 32, 32)
    model, tokenizer = clip(name)
    ids = tokenizer(said, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        pictures = normalize(model.get_image_features(pixel_values=drawn * 2 - 1).pooler_output, dim=1)
        words = normalize(model.get_text_features(input_ids=ids).pooler_output, dim=1)
    right = (pictures @ words.T).argmax(1) == torch.arange(len(said))
    assert right.float().mean() >= 0.85


@pytest.mark.long
def test_its_card_and_that_of_its_student_run_by_themselves(teacher: Any, tmp_path: Path) -> None:
    """Its files are in half precision. The card's DDIM starts at pure noise, our sampler a little below."""
    own = copytree(ASSETS / "teachers" / "emoji", tmp_path / "own")
    schedule = schedules.build(teacher.process, 4, "uniform_trailing")
    student = tmp_path / "student"
    export_student(teacher, schedule, student, name="x", guidance=GUIDANCE, teacher=own, summary=None)
    run_alone([own, student])
    unit = torch.randn(1, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    twenty = schedules.build(teacher.process, 20, "uniform_trailing")
    for folder, caption, levels, atol in ((own, "red apple", twenty, 0.01), (student, CAPTION, schedule, 1e-3)):
        encoded = teacher.encode([caption])
        predict = partial(teacher.predict, encoded=encoded, guidance=GUIDANCE)
        with torch.no_grad():
            expected = teacher.decode(solvers.sample("euler", predict, unit, levels))[0]
        torch.testing.assert_close(torch.load(folder / "image.pt"), expected, rtol=0, atol=atol)
        assert (folder / "sample.png").is_file()
