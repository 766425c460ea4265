"""The small classifiers: round trips, the split and the shifts of their training, and the two that ship."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import make, png
from safetensors.torch import load_file, save_file

from redif_ray.classifiers.config import ClassifierConfig, JudgeTrainingError
from redif_ray.classifiers.training import accuracy, read_images, shifted, split_rows, train_classifier
from redif_ray.config import load
from redif_ray.data.errors import DataError
from redif_ray.data.images import ImageSet, load_images
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.judge_source import ASSETS
from redif_ray.models.classifier import Classifier, ClassifierError, Kind, load_classifier

SHIPPED = {"first": ASSETS / "classifiers/fashion_mnist_a", "second": ASSETS / "judges/fashion_mnist_b"}


def images(n: int, shape: tuple[int, ...] = (1, 28, 28)) -> torch.Tensor:
    values = noise.uniform(n * int(np.prod(shape)), Stream.TEACHER_NOISE, seed=3)
    return torch.from_numpy(values).float().reshape(n, *shape)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_saved_and_loaded_is_the_same(kind: Kind, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(kind, "tiny", (3, 18, 22), ("a", "b", "c"), {"fact": 1})
    model.logits(images(8, (3, 18, 22)))  # moves the running statistics of batch normalisation away from their start
    model.eval().save(tmp_path / "tiny")
    loaded, x = load_classifier(tmp_path / "tiny"), images(4, (3, 18, 22)).requires_grad_()
    assert torch.equal(loaded.logits(x), model.logits(x))
    assert (loaded.name, loaded.image_shape) == ("tiny", (3, 18, 22))
    assert (loaded.classes, loaded.card) == (("a", "b", "c"), {"fact": 1})
    assert loaded.features(x).shape == (4, 64, 5, 6)
    assert loaded.embedding(x).shape == (4, 64)
    assert loaded.logits(x).shape == (4, 3)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    loaded.features(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    alone = torch.cat([loaded.logits(row[None]) for row in x])
    torch.testing.assert_close(alone, loaded.logits(x))  # rows share nothing


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 28, 28), r"expected float \[batch, 1, 28, 28\]"),
        (torch.zeros(2, 3, 28, 28), r"\(2, 3, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"),
        (torch.full((2, 1, 28, 28), -0.5), r"span \[-0.5, -0.5\]"),
        (torch.full((2, 1, 28, 28), 255.0), "255"),
        (torch.full((2, 1, 28, 28), float("nan")), "nan"),
    ],
)
def test_refuses_images(bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        Classifier("conv", "tiny", (1, 28, 28), ("a", "b")).eval().embedding(bad)


def test_refuses_folders(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"has no config\.json"):
        load_classifier(tmp_path)
    Classifier("conv", "tiny", (1, 8, 8), ("a", "b")).save(tmp_path)
    config = tmp_path / "config.json"
    changes = (
        ('"conv"', '"vit"', "'vit': expected conv or residual"),
        ('"conv"', '"residual"', "weights"),
        ('"name"', '"title"', "title"),
    )
    for old, new, message in changes:
        text = config.read_text()
        config.write_text(text.replace(old, new))
        with pytest.raises(ClassifierError, match=message):
            load_classifier(tmp_path)
        config.write_text(text)
    weights = load_file(tmp_path / "model.safetensors")
    for value in (torch.tensor([torch.nan, 0.0]), torch.tensor([torch.nan, 0.0]).to(torch.float8_e4m3fn)):
        save_file({**weights, "head.bias": value}, tmp_path / "model.safetensors")
        with pytest.raises(ClassifierError, match=r"weight head\.bias is NaN or infinite"):
            load_classifier(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ClassifierError, match=r"model\.safetensors does not hold"):
        load_classifier(tmp_path)


def test_halves_are_a_partition() -> None:
    first, second = split_rows(101, "first", 5), split_rows(101, "second", 5)
    assert sorted([*first, *second]) == list(range(101))
    assert not np.array_equal(first, split_rows(101, "first", 6))


def test_shifts_are_bounded_uniform_and_keyed() -> None:
    """Every one of the 25 moves of one lit pixel occurs, none further; zeros enter at the edge."""
    picture = np.zeros((2000, 1, 7, 7), np.uint8)
    picture[:, 0, 3, 3] = 9
    moved = shifted(picture, 2, seed=1, step=4)
    places = moved[:, 0].reshape(2000, -1).argmax(1)
    counts = np.bincount(places, minlength=49).reshape(7, 7)
    assert counts[1:6, 1:6].min() > 80 / 2 and counts.sum() == counts[1:6, 1:6].sum() == 2000
    assert np.array_equal(moved, shifted(picture, 2, seed=1, step=4))
    assert not np.array_equal(moved, shifted(picture, 2, seed=1, step=5))
    corner = np.full((50, 1, 4, 4), 7, np.uint8)
    assert set(np.unique(shifted(corner, 2, seed=1, step=0))) == {0, 7}


def write_idx(folder: Path, prefix: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    for name, array in ((f"{prefix}-images-idx3-ubyte", pixels), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


def test_training_learns_and_repeats(tmp_path: Path) -> None:
    labels = np.arange(256) % 2
    pixels = np.zeros((256, 8, 8), np.uint8)
    pixels[labels == 0, 2:4, 2:6] = 200  # a bar that lies
    pixels[labels == 1, 2:6, 2:4] = 200  # and one that stands
    write_idx(tmp_path, "train", pixels, labels)
    write_idx(tmp_path, "t10k", pixels[:64] // 2, labels[:64])
    common = [f"data={tmp_path}", "name=bars", "kind=residual", "epochs=3", "batch=32", "shift=1"]
    train_classifier(load(None, [*common, f"out={tmp_path / 'one'}"], ClassifierConfig))
    rows: list[dict[str, float]] = []
    config = dict(text.split("=") for text in common) | {"out": str(tmp_path / "two")}
    train_classifier(ClassifierConfig.model_validate(config), report=rows.append)
    one, two = (load_classifier(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert one.card["test_accuracy"] > 0.9
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[-1]["loss"] < rows[0]["loss"]
    with pytest.raises(FileExistsError, match="one exists"):
        train_classifier(load(None, [*common, f"out={tmp_path / 'one'}"], ClassifierConfig))


def config(tmp_path: Path, **changes: object) -> ClassifierConfig:
    return ClassifierConfig.model_validate({"data": str(tmp_path), "out": str(tmp_path / "x"), "batch": 2, **changes})


def test_of_data_without_a_test_split_a_tenth_is_held_out_of_both_halves(tmp_path: Path) -> None:
    pixels, labels = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2), np.arange(40) % 2
    np.savez(tmp_path / "set.npz", images=pixels, labels=labels)
    found = [read_images(config(tmp_path, data=str(tmp_path / "set.npz"), half=half)) for half in ("first", "second")]
    (train, test), (_, same) = found
    assert np.array_equal(test.images, same.images) and (len(train), len(test)) == (36, 4)
    assert sorted(np.concatenate([train.images, test.images])[:, 0, 0, 0]) == list(range(40))


def test_the_classes_of_a_test_split_are_those_of_training(tmp_path: Path) -> None:
    """The test lacks the first class, so its folders alone would number the others from 0."""
    for split, names in (("train", "abc"), ("test", "bc")):
        for level, name in enumerate(names):
            files = {f"{split}/{name}/{i}.png": png(level) for i in range(4)}
            make(tmp_path, files)
    train, test = read_images(config(tmp_path))
    assert test.classes == train.classes == ("a", "b", "c")
    assert test.labels is not None and test.labels.tolist() == [1] * 4 + [2] * 4
    make(tmp_path, {"test/d/1.png": png(1)})
    with pytest.raises(DataError, match="the class 'd' is not among a, b, c"):
        read_images(config(tmp_path))


def test_data_that_cannot_train_a_judge_are_refused(tmp_path: Path) -> None:
    make(tmp_path, {f"{i}.png": png(i) for i in range(5)})
    with pytest.raises(JudgeTrainingError, match="has no labels; expected labelled images"):
        read_images(config(tmp_path))
    make(tmp_path / "set", {f"{name}/{i}.png": png(i) for name in "ab" for i in range(5)})
    with pytest.raises(JudgeTrainingError, match=r"batch=8: half of the training images of .* are 4; set a smaller"):
        read_images(config(tmp_path, data=str(tmp_path / "set"), batch=8))


@pytest.mark.slow
@pytest.mark.parametrize("half", ["first", "second"])
def test_shipped_classifiers_are_what_their_cards_say(half: str) -> None:
    model = load_classifier(SHIPPED[half])
    rows = np.sort(split_rows(60000, half, model.card["split"]["seed"])).astype("<i8")
    assert model.card["split"]["half"] == half
    assert model.card["split"]["rows_sha256"] == hashlib.sha256(rows.tobytes()).hexdigest()
    assert model.card["test_accuracy"] > 0.91
    assert sum(p.numel() for p in model.parameters()) < 400_000
    test = load_images(ASSETS / "reference/fashion_mnist_test.parquet")
    assert test.labels is not None
    some = ImageSet(test.images[:1500], test.labels[:1500], test.classes)
    assert accuracy(model, some) == pytest.approx(model.card["test_accuracy"], abs=0.02)  # 3 standard errors
    assert "MIT" in (SHIPPED[half] / "README.md").read_text()
