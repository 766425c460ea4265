"""`redif sample`: captions from a file, an image a file, sizes, devices, precisions, and runs that are not finished."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import second_device
import torch
from PIL import Image
from tiny_edits import drawn
from tiny_flux import write_kontext
from tiny_models import normal, write_dit
from tiny_pipelines import write_sd, write_sd3
from tiny_pixart import write_pixart

from redif_ray.checkpoint import save_checkpoint
from redif_ray.config import Config, ConfigError, dump, load
from redif_ray.errors import UserError
from redif_ray.models import device
from redif_ray.models.captions import caption_warnings
from redif_ray.models.device import sampling_device, sampling_dtype
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model, load_teacher
from redif_ray.models.student import get_weights, make_student, set_weights
from redif_ray.planning import factory
from redif_ray.sample import draw, sample
from redif_ray.sample import load as load_student

pytestmark = pytest.mark.slow


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_each_caption_of_a_file_has_its_image(tmp_path: Path) -> None:
    model = write_sd(tmp_path / "m")
    (tmp_path / "captions.txt").write_text("a cat\n\na dog\n")
    options = {"seed": 0, "steps": 2, "captions": tmp_path / "captions.txt", "size": (16, 24)}
    assert sample(str(model), tmp_path / "each", separate=True, **options) == 2  # type: ignore[arg-type]
    assert rows(tmp_path / "each") == [
        {"file_name": "00000.png", "caption": "a cat"},
        {"file_name": "00001.png", "caption": "a dog"},
    ]
    assert sample(str(model), tmp_path / "turns", count=3, separate=True, **options) == 3  # type: ignore[arg-type]
    assert [row["caption"] for row in rows(tmp_path / "turns")] == ["a cat", "a dog", "a cat"]
    first, again = (pixels(tmp_path / "turns" / f"0000{i}.png") for i in (0, 2))
    assert first.shape == (16, 24, 3) and not np.array_equal(first, again)  # other noises
    np.testing.assert_array_equal(first, pixels(tmp_path / "each" / "00000.png"))
    sample(str(model), tmp_path / "one.png", seed=0, steps=2, caption="a cat", count=1, size=(16, 24))
    np.testing.assert_array_equal(pixels(tmp_path / "one.png")[::3, ::3], first)  # a picture enlarges small images


def test_a_picture_is_changed_as_captions_say(tmp_path: Path) -> None:
    model, options = write_kontext(tmp_path / "m"), {"seed": 0, "steps": 2, "size": (16, 24)}
    for i in range(2):
        drawn(i, (20, 24)).save(tmp_path / f"{i}.jpg")
    loaded = load_student(str(model), steps=2, size=(16, 24))
    first, same, other = (
        np.array(loaded.sample("a cat", count=1, picture=tmp_path / f"{i}.jpg")[0]).astype(int) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    call = {**options, "caption": "a cat", "picture": tmp_path / "0.jpg", "count": 1}
    assert sample(str(model), tmp_path / "each", separate=True, **call) == 1  # type: ignore[arg-type]
    assert rows(tmp_path / "each") == [{"file_name": "00000.png", "caption": "a cat"}]
    np.testing.assert_array_equal(pixels(tmp_path / "each" / "00000.png"), first)
    (tmp_path / "no.png").write_text("no image")
    for wrong, message in (
        ({"picture": None}, "changes a picture as a caption says; give --picture FILE and --caption TEXT"),
        ({"caption": None}, "changes a picture as a caption says"),
        ({"picture": tmp_path / "absent.png"}, "absent.png cannot be read"),
        ({"picture": tmp_path / "no.png"}, "no.png is not an image that can be read"),
    ):
        with pytest.raises(UserError, match=message):
            sample(str(model), tmp_path / "no", separate=True, **call | wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"takes no picture; leave out --picture .*0.jpg"):
        sample(str(write_sd(tmp_path / "sd")), tmp_path / "x.png", **call)  # type: ignore[arg-type]


def test_captions_that_are_read_in_part_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, options = str(write_sd(tmp_path / "m")), {"seed": 0, "steps": 1, "size": (16, 24)}
    sample(model, tmp_path / "short.png", caption="a cat", count=1, **options)  # type: ignore[arg-type]
    assert not caplog.records
    sample(model, tmp_path / "long.png", caption="a cat " * 100, count=1, **options)  # type: ignore[arg-type]
    assert "does not read all of what it is to draw: 1 of 1 captions have more tokens than it takes" in caplog.text


def test_characters_that_no_tokeniser_knows_are_told(tmp_path: Path) -> None:
    """A T5 knows pieces of words; a CLIP spells everything in bytes, so beside one nothing is unknown."""
    model = load_model(write_pixart(tmp_path / "pixart"))
    known = model.unreadable(["a cat", "a \u5feb dog"])
    assert known == ["a \u5feb dog"]
    assert "1 of 2 captions have characters" in caption_warnings(model, ["a cat", "a \u5feb dog"])[0]
    assert load_model(write_sd(tmp_path / "sd")).unreadable(["a \u5feb dog"]) == []


def test_labels_are_named_too_and_grey_images_stay_grey(tmp_path: Path) -> None:
    sample(str(write_dit(tmp_path / "m")), tmp_path / "out", count=4, seed=0, steps=2, separate=True)
    assert [row["label"] for row in rows(tmp_path / "out")] == [0, 1, 2, 0]
    assert pixels(tmp_path / "out" / "00000.png").shape == (8, 8)
    with pytest.raises(FileExistsError, match="out is no empty folder; choose another"):
        sample(str(tmp_path / "m"), tmp_path / "out", count=4, seed=0, separate=True)


def test_each_class_has_a_column(tmp_path: Path) -> None:
    sample("fashion-mnist", tmp_path / "all.png", count=11, seed=0, steps=1)
    picture = np.asarray(Image.open(tmp_path / "all.png"))
    assert picture.shape == (2 * 84, 10 * 84, 3)
    assert picture[84:, :84].min() < 255 and picture[84:, 84:].min() == 255  # the eleventh is of class 0, too
    sample(str(write_dit(tmp_path / "m")), tmp_path / "three.png", count=40, seed=0, steps=1)
    assert Image.open(tmp_path / "three.png").size == (6 * 64, 7 * 64)  # two columns for each of three classes


def test_captions_that_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a cat\n")
    with pytest.raises(UserError, match="takes no captions"):
        sample(str(write_dit(tmp_path / "d")), tmp_path / "out.png", seed=0, captions=tmp_path / "captions.txt")
    model = str(write_sd(tmp_path / "m"))
    with pytest.raises(UserError, match=r"--caption 'a cat': --captions .* is given too"):
        sample(model, tmp_path / "out.png", seed=0, caption="a cat", captions=tmp_path / "captions.txt")
    with pytest.raises(ConfigError, match=r"--captions=.*none\.txt: no such file"):
        sample(model, tmp_path / "out.png", seed=0, captions=tmp_path / "none.txt")


@pytest.mark.parametrize("rank", [0, 2])
def test_an_unfinished_run_shows_its_newest_checkpoint(
    rank: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, teacher = tmp_path / "run", write_sd(tmp_path / "teacher")
    options = (f"teacher.model={teacher}", "teacher.height=24", "teacher.width=16", "student.steps=2")
    config: Config = load("smoke", [*options, f"student.lora={{rank: {rank}, targets: [to_v]}}"])
    run.mkdir()
    (run / "config.yaml").write_text(dump(config))
    with pytest.raises(UserError, match="has neither a student nor a checkpoint yet"):
        sample(str(run), tmp_path / "out.png", seed=0)
    student = make_student(load_teacher(config.teacher), config.student.lora)
    for number in (2, 10):
        weights = {k: w + 0.1 * normal(*w.shape, seed=number) for k, w in get_weights(student).items()}
        set_weights(student, weights)
        tensors = {f"deploy/{name}": weight for name, weight in weights.items()}
        save_checkpoint(run / "checkpoints" / f"round-{number:06d}", tensors, {"version": number})
    sample(str(run), tmp_path / "out", seed=1, caption="a cat", count=2, separate=True)
    assert "is not finished" in caplog.text and "round-000010" in caplog.text
    schedule = factory.student_schedule(student, config.student)
    expected = draw(student, schedule, [0, 1], ["a cat"] * 2, 1, config.student.guidance)
    found = np.stack([pixels(tmp_path / "out" / f"0000{i}.png") for i in range(2)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, np.round(255 * expected.numpy()))


def test_another_device_draws_the_same(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "m")
    for name in ("cpu", second_device.NAME):
        sample(str(folder), tmp_path / name, count=2, seed=0, steps=2, caption="a cat", separate=True, device=name)
    for i in range(2):
        here, there = (pixels(tmp_path / name / f"0000{i}.png").astype(int) for name in ("cpu", second_device.NAME))
        assert np.abs(here - there).max() <= 1
    with pytest.raises(ModelError, match=r"--device abacus: .*expected cpu, or a device that this machine has"):
        sampling_device("abacus")


def test_precision_follows_device_files_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = write_sd(tmp_path / "whole"), write_sd(tmp_path / "half", dtype=torch.float16)
    wanted = {
        (None, whole, "cpu"): torch.float32,
        (None, half, "cpu"): torch.float32,
        (None, whole, "cuda"): torch.float32,
        (None, half, "cuda"): torch.float16,
        ("bfloat16", half, "cpu"): torch.bfloat16,
        ("float32", half, "cuda"): torch.float32,
        (None, tmp_path, "cuda"): torch.float32,
    }
    assert {key: sampling_dtype(*key) for key in wanted} == wanted  # type: ignore[arg-type]
    weights = sum(p.numel() for p in load_model(whole).network.parameters())
    monkeypatch.setattr(device, "LARGE", weights - 1)
    assert sampling_dtype(None, whole, "cuda:1") == torch.bfloat16
    assert sampling_dtype(None, whole, "cpu") == torch.float32
    monkeypatch.setattr(device, "LARGE", weights)
    assert sampling_dtype(None, whole, "cuda") == torch.float32
