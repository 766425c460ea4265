"""Inputs as users have them, through the command line: each is read as it is meant, or named before anything starts."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from commands import here, one_line
from image_files import make, parquet, png
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_encoders import write_clip
from tiny_pipelines import put_in_index, write_sd, write_sdxl

from redif_ray.config import dump
from redif_ray.data.schedule_file import Found, ScheduleFile
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.job import launch
from redif_ray.models.classifier import Classifier
from redif_ray.models.locate import TEACHERS
from redif_ray.models.registry import load_model, model_folder
from redif_ray.models.sketch import found_for

CELLS = [png(level, size=(8, 8)) for level in (1, 2, 3)]
HIDDEN = {".ipynb_checkpoints/0-checkpoint.png": png(9)}


def looked_at(data: Path, *words: str) -> Any:
    return here("train-teacher", "teacher_fashion_mnist", f"data={data}", f"out={data}-teacher", "--dry-run", *words)


@pytest.mark.parametrize(
    ("files", "source", "told"),
    [
        (
            {"cat/0.png": png(), "bird/0.tif": png(kind="TIFF"), **HIDDEN},
            "",
            ["classes: 2 ('bird' 1, 'cat' 1)", "left out: 1 hidden (.ipynb_checkpoints)"],
        ),
        ({"a.parquet": parquet({"image": CELLS, "fine_label": [0, 2, 1]})}, "a.parquet", ["classes: 3"]),
        ({"a.png": png(5, "L"), "b.png": png(5)}, "", ["modes: L 1, RGB 1", "used as: 4 x 4 pixels, RGB"]),
        ({"train/cat/0.png": png(), "test/cat/1.png": png()}, "", ["splits: test, train", "1 images"]),
    ],
)
def test_a_summary_says_what_a_training_would_see(files: Any, source: str, told: list[str], tmp_path: Path) -> None:
    done = looked_at(make(tmp_path / "set", files) / source)
    assert done.returncode == 0 and all(words in one_line(done.stdout) for words in told), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": CELLS, "label": [0, 2**40, 1]}, "labels span 0..1099511627776; expected class numbers from 0 to"),
        ({"image": CELLS, "species": [0, 2, 1]}, "has the columns species, and which one holds labels is not known"),
    ],
)
def test_labels_that_cannot_be_used_are_one_error(columns: Any, told: str, tmp_path: Path) -> None:
    done = looked_at(make(tmp_path, {"a.parquet": parquet(columns)}) / "a.parquet")
    assert done.returncode == 2 and told in one_line(done.stderr)


def test_pixels_are_those_that_a_viewer_shows(tmp_path: Path) -> None:
    """A photograph with an orientation, and a sprite, black on transparent."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph, sprite = np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)
    photograph[:, 4:], sprite[:, :4, 3] = 255, 255
    (tmp_path / "set").mkdir()
    Image.fromarray(photograph).save(tmp_path / "set" / "0.jpg", exif=exif, quality=100)
    Image.fromarray(sprite).save(tmp_path / "set" / "1.png")
    Classifier("conv", "mine", (3, 8, 8), ("a", "b")).save(tmp_path / "judge")
    done = here("make-reference", str(tmp_path / "set"), str(tmp_path / "judge"), "--background", "#ff0000")
    assert done.returncode == 0, done.stderr
    turned, red = ReferenceImages(tmp_path / "judge" / "reference.parquet", 3).rows(0, 2)
    assert turned[:, :4].max() < 30 and turned[:, 4:].min() > 225
    assert red[:, :, :4].max() == 0 and red[0, :, 4:].min() == 255 and red[1:].max() == 0


def drawn(model: Path, out: Path) -> np.ndarray:
    """An image of `redif sample`, float [H, W, 3]."""
    done = here("sample", str(model), *("--caption", "a fox", "--count", "1", "--steps", "2", "--images", str(out)))
    assert done.returncode == 0, done.stderr
    with Image.open(out / "00000.png") as image:
        return np.asarray(image).astype(np.float32)


def put(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_statistics_of_a_vae_count_as_in_its_pipeline(tmp_path: Path) -> None:
    model = write_sdxl(tmp_path / "m")
    put(model / "vae" / "config.json", latents_mean=[0.5, -0.3, 0.2, 0.1], latents_std=[1.5, 0.7, 1.2, 0.9])
    loaded: Any = load_model(model)
    unit = noise.initial_noise([0], loaded.latent_shape, seed=0, stream=Stream.HELD_OUT)
    levels = schedules.build(loaded.process, 2, "uniform_trailing")
    with torch.no_grad():
        latents = solvers.sample("euler", loaded.predictor(loaded.encode(["a fox"]), 1.0), unit, levels)
    pipe: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    keep = lambda *_: {"latents": latents}  # noqa: E731
    kept = pipe("a fox", num_inference_steps=1, height=16, width=16, callback_on_step_end=keep, output_type="np")
    assert np.abs(drawn(model, tmp_path / "images") - 255 * kept.images[0]).max() <= 1


@pytest.mark.slow
def test_a_key_that_a_scheduler_does_not_know_changes_no_image(tmp_path: Path) -> None:
    model = write_sdxl(tmp_path / "m")
    config = {**diffusers.DDIMScheduler.from_pretrained(model / "scheduler").config, "clip_sample": True}
    diffusers.EulerDiscreteScheduler.from_config(config).save_pretrained(model / "scheduler")
    put_in_index(model, scheduler=["diffusers", "EulerDiscreteScheduler"])
    path = model / "scheduler" / "scheduler_config.json"
    written = json.loads(path.read_text())
    assert written["clip_sample"] is True
    first = drawn(model, tmp_path / "first")
    del written["clip_sample"]
    path.write_text(json.dumps(written))
    np.testing.assert_array_equal(first, drawn(model, tmp_path / "second"))


def test_an_override_is_the_text_that_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for root, expected in (("data #1", "data #1"), ("~/runs", f"{tmp_path}/runs")):
        done = here("distill", "smoke", f"run.root={root}", "learner.rounds=0100", "--print-config")
        found = yaml.safe_load(done.stdout)
        assert found["run"]["root"] == expected and found["learner"]["rounds"] == 100


@pytest.mark.slow
def test_a_schedule_of_another_model_is_told_by_sample_and_doctor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, path = shutil.copytree(TEACHERS / "fashion-mnist", tmp_path / "other"), tmp_path / "schedule.yaml"
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    found = Found(name="searched", timesteps=(999.0, 500.0), half_log_snr=(None, 0.0))
    of = {"teacher": "then", "found_for": found_for(model_folder("fashion-mnist"), None, {}), "student": None}
    fields = {**of, "solver": "euler", "guidance": 1.0, "schedules": {2: found}}
    path.write_text(dump(ScheduleFile.model_validate(fields)))
    options = ("--steps", "2", "--count", "1", "--schedule", str(path), "--out", str(tmp_path / "x.png"))
    assert here("sample", "fashion-mnist", *options).returncode == 0 and not caplog.records
    assert here("sample", str(other), *options).returncode == 0
    assert "the schedule was found for something else: other weights, those of then" in caplog.text
    caplog.clear()
    assert here("doctor", "smoke", f"teacher.model={other}", f"student.schedule={path}").returncode == 0
    assert "the schedule was found for something else: other weights, those of then" in caplog.text


def spoilt(folder: Path) -> Path:
    """The shipped teacher with a weight that is NaN."""
    teacher = shutil.copytree(TEACHERS / "fashion-mnist", folder / "nan")
    path = teacher / "transformer" / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    held["proj_out_1.weight"].view(-1)[0] = float("nan")
    save_file(held, path)
    return teacher


def with_code(folder: Path) -> Path:
    """A CLIP that only the code beside it could read, which would write a file."""
    clip = write_clip(folder / "clip")
    (clip / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    put(clip / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.C"})
    return clip


SCORE = "def score(student, teacher, conditions):\n    "
MEAN = "return student.mean((1, 2, 3))\n"
CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
BEFORE_RAY = {
    "term": (["reward.terms.mes.weight=1"], "unknown reward term 'mes'"),
    "teacher": (["teacher.model=/nowhere"], "no model '/nowhere'"),
    "resume": (["--resume"], "holds no run to resume"),
    "alters": (["weight=0", SCORE + "student.mul_(0.5)\n    " + MEAN], "'mine': it altered the student images that"),
    "exits": (["weight=1", "import sys\nsys.exit(0)\n"], "mine.py: SystemExit: 0"),
}


def refused(*_: Any) -> Any:
    raise AssertionError("Ray was started")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "alters" else ()) for name in BEFORE_RAY]
)
def test_what_needs_no_network_is_told_before_ray_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (*words, last), told = BEFORE_RAY[name]
    if words:
        (tmp_path / "mine.py").write_text(last)
        (weight,) = words
        words = [f"reward.terms.mine.{weight}", f"reward.terms.mine.options.callable={tmp_path}/mine.py:score"]
    else:
        words = [last]
    monkeypatch.setattr(launch, "started", refused)
    done = here("distill", "smoke", f"run.root={tmp_path}/runs", "tracking.uri=off", *words)
    assert done.returncode == 2 and told in one_line(done.stderr), done.stderr
    assert not (tmp_path / "runs").exists()


def with_bomb(folder: Path) -> Path:
    """A teacher whose card holds 9^9 values, by aliases."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    teacher = write_sd(folder / "m")
    (teacher / "README.md").write_text("\n".join(["---", *lines, "license: *i", "---", ""]))
    return teacher


OTHERS = "evaluation.judge=random-features"
BEFORE_A_RUN = {
    "NaN": (lambda to: [f"teacher.model={spoilt(to)}"], "weight proj_out_1.weight is NaN or infinite"),
    "part": (
        lambda to: [f"teacher.model={put_in_index(write_sd(to / 'm'), safety_checker=CHECKER)}", OTHERS],
        "has no folder safety_checker",
    ),
    "loot": (
        lambda to: [f"teacher.model={put_in_index(write_sd(to / 'm'), **{'../../loot': ['x', 'Y']})}", OTHERS],
        "lists the part '../../loot', which is no name of a folder",
    ),
    "card": (lambda to: [f"teacher.model={with_bomb(to)}", OTHERS], "README.md: its front matter is not valid YAML"),
    "judge": (lambda _: [OTHERS, "evaluation.held_out=8"], "held_out=8: judge random-features"),
    "adapters": (lambda _: ["student.lora={rank: 2, targets: [to_out]}"], "'to_out' matches a ModuleList"),
    "code": (lambda to: [f"reward.terms.clip.options.model={with_code(to)}"], "cannot be loaded"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE_A_RUN)
def test_what_a_run_would_fail_of_is_told_before_it_has_a_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, told = BEFORE_A_RUN[name]
    monkeypatch.setattr(launch, "started", nullcontext)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    done = here("distill", "smoke", f"run.root={tmp_path}/runs", "tracking.uri=off", *words(tmp_path))
    assert done.returncode == 2 and told in one_line(done.stderr) and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_deleted_experiment_is_told_with_its_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri := f"sqlite:///{tmp_path}/mlflow.db")
    client.delete_experiment(client.create_experiment("redif"))
    monkeypatch.setattr(launch, "started", nullcontext)
    words = ("distill", "smoke", f"run.root={tmp_path}/runs", f"tracking.uri={uri}", "tracking.experiment=redif")
    done = here(*words)
    assert done.returncode == 2 and "experiment 'redif' is deleted in sqlite" in done.stderr
    assert "restore it by `MLFLOW_TRACKING_URI=" in done.stderr and "another name by tracking.experiment" in done.stderr
