"""The commands that read a user's images, as a user meets them."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import here, one_line
from image_files import make, png
from rich.console import Console

from redif_ray.config import Config, load
from redif_ray.data.conditions import Conditions, load_conditions
from redif_ray.data.images import load_images
from redif_ray.errors import UserError
from redif_ray.evaluation.encoders import embedded, load_encoder
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.job import distill as job
from redif_ray.job.preflight import check_judge
from redif_ray.teacher import training
from redif_ray.types import Reference

SMALL = ["threads=1", "steps=20", "layers=1", "heads=1", "head_dim=8", "batch=4", "warmup=2", "checkpoint_every=1000"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, of which one is dark and one bright; 60 images to train on and 240 to test."""
    files = {
        f"{split}/{name}/{i}.png": png(level + i, "L", (8, 8))
        for split, count in (("train", 30), ("test", 120))
        for name, level in (("dark", 0), ("bright", 130))
        for i in range(count)
    }
    return make(tmp_path / "my images", {**files, "notes.txt": "x"})


def teacher(images: Path, tmp_path: Path, *words: str) -> list[str]:
    return ["train-teacher", "teacher_fashion_mnist", f"data={images}", f"out={tmp_path}/out", *SMALL, *words]


@pytest.mark.parametrize("command", ["train-teacher", "train-judge", "make-reference"])
def test_help_names_what_the_command_takes(command: str) -> None:
    done = here(command, "--help")
    assert done.returncode == 0
    words = {"train-teacher": "label_dropout", "train-judge": "split_seed", "make-reference": "--background"}
    assert words[command] in done.stdout and "learner.lr" not in done.stdout


def test_each_key_of_the_trainings_is_explained() -> None:
    for command in (["train-teacher", "teacher_fashion_mnist"], ["train-judge", "data=x", "out=y"]):
        lines = here(*command, "--print-config").stdout.splitlines()
        keys = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
        assert keys and all(lines[i - 1].startswith("# ") for i in keys)
        assert yaml.safe_load("\n".join(lines))


def test_a_dry_run_says_what_was_found_and_writes_nothing(images: Path, tmp_path: Path) -> None:
    done = here(*teacher(images, tmp_path, "--dry-run"))
    assert done.returncode == 0
    for line in (
        f"data: {images}, a folder of images: 60 images",
        "splits: test, train",
        "classes: 2 ('bright' 30, 'dark' 30)",
        "left out: 1 files .txt (notes.txt)",
        "used as: 8 x 8 pixels, grey",
    ):
        assert line in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["my images"]


@pytest.mark.slow
def test_ctrl_c_keeps_the_training(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(step: int, *rest: object) -> float:
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(step, *rest)  # type: ignore[arg-type]

    learning_rate = training.learning_rate
    monkeypatch.setattr(training, "learning_rate", pressed)
    done = here(*teacher(images, tmp_path))
    assert done.returncode == 130
    told = f"{tmp_path}/out.training holds the training up to here; continue with the same command and --resume"
    assert told in one_line(done.stdout) and (tmp_path / "out.training" / "last").is_dir()
    assert (tmp_path / "out.training" / "samples" / "step-000010.png").is_file()
    monkeypatch.undo()
    done = here(*teacher(images, tmp_path, "--resume"))
    assert done.returncode == 0 and "step 20/20" in done.stdout and "0:00:00 left" in done.stdout
    assert (tmp_path / "out" / "model_index.json").is_file() and not (tmp_path / "out.training").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda:99"], "device=cuda:99: "),
        (["background=whit"], "background='whit' is no colour; expected a name such as white, or #rrggbb"),
        (["label=species"], "the labels of this folder are the names of its folders; leave label=species out"),
        (["data=/nowhere"], "no such image set: /nowhere"),
        (["--resume"], "holds no checkpoint to resume"),
    ],
)
def test_what_a_user_can_mend_is_one_error(words: list[str], message: str, images: Path, tmp_path: Path) -> None:
    done = here(*teacher(images, tmp_path, *words))
    assert done.returncode == 2 and message in one_line(done.stderr) and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_judge_of_ones_own_images_judges(images: Path, tmp_path: Path) -> None:
    """What two commands write passes the checks of a run, and tells an arm like the real images from another."""
    judge = tmp_path / "my judge"
    done = here("train-judge", f"data={images}", f"out={judge}", "batch=8", "epochs=4", "shift=0")
    assert done.returncode == 0, done.stderr
    assert "test: 240 other images" in done.stdout
    assert f"redif make-reference DATA '{judge}'" in one_line(done.stdout)
    assert f"redif train-judge batch=8 'data={images}' epochs=4" in (judge / "README.md").read_text()
    done = here("make-reference", str(images), str(judge))
    assert done.returncode == 0 and "240 images" in done.stdout and "note:" not in done.stdout
    done = here("make-reference", str(images), str(judge))
    assert done.returncode == 2 and "reference.parquet exists; move it away" in one_line(done.stderr)

    config = load("smoke", [f"evaluation.judge={judge}", "evaluation.held_out=100"])
    check_judge(config, (1, 8, 8), 100)
    encoder = load_encoder(str(judge), (1, 8, 8))
    reference = ReferenceImages(judge / "reference.parquet", 1).rows(0, 240)
    assert np.array_equal(np.sort(reference[:, 0, 0, 0]), np.sort(load_images(images, split="test").images[:, 0, 0, 0]))
    of = Judge.of([Reference(encoder.name, features(encoder, reference))])
    like, unlike = features(encoder, reference[::2]), features(encoder, reference[:120])  # both classes; bright alone
    assert 10 * of.frechet(like) < of.frechet(unlike)


def features(encoder: object, images: np.ndarray) -> np.ndarray:
    import torch

    return embedded(encoder, torch.from_numpy(images).float() / 255, "cpu")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_reference_is_what_the_judge_takes(images: Path, tmp_path: Path) -> None:
    """Grey images become RGB for a judge of colours, and are resized; colours do not become grey."""
    from redif_ray.models.classifier import Classifier

    Classifier("conv", "mine", (3, 4, 4), ("a", "b")).save(tmp_path / "colour")
    done = here("make-reference", str(images), str(tmp_path / "colour"), "--split", "train")
    assert done.returncode == 0, done.stderr
    assert ReferenceImages(tmp_path / "colour" / "reference.parquet").shape == (3, 4, 4)
    make(images, {"test/dark/x.png": png(9)})
    Classifier("conv", "mine", (1, 4, 4), ("a", "b")).save(tmp_path / "grey")
    done = here("make-reference", str(images), str(tmp_path / "grey"))
    assert done.returncode == 2
    assert "holds images of (3, 4, 4) (channels, height, width), and the judge" in one_line(done.stderr)
    done = here("make-reference", str(images), str(tmp_path / "nothing"))
    assert done.returncode == 2 and "nothing is not a classifier: it has no config.json" in one_line(done.stderr)


def test_a_run_says_which_captions_it_found_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(
        tmp_path / "captioned", {"1.png": b"", "1.txt": "A cat", "2.png": b"", "2.txt": "a  cat", "x.txt": ""}
    )

    def found(config: Config) -> Conditions:
        return load_conditions(config.conditions, num_classes=None, captions=True, seed=0)

    def stop(*rest: object) -> None:
        raise UserError("that is all")

    monkeypatch.setattr(job, "preflight", found)
    monkeypatch.setattr(job, "check_room", stop)
    console = Console(file=io.StringIO(), width=200)
    config = load("smoke", [f"conditions.source={folder}", "conditions.held_out=0", f"run.root={tmp_path}"])
    with pytest.raises(UserError, match="that is all"):
        job.distill(config, console=console)
    told = "captions: 2, of which 1 repeat another one, or differ in case, spaces or form alone; 1 train and evaluate"
    assert console.file.getvalue().splitlines() == [told, "  left out: 1 files .txt (x.txt)"]  # type: ignore[attr-defined]
