"""The command `python -m redif_ray.classifiers`: train a small classifier as a reward's encoder or as a judge.

An encoder and a judge must not share data, so each is trained on its own half of a seeded split, which the folder
records.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from redif_ray.config import load
from redif_ray.data.arrays import FASHION_MNIST_CLASSES
from redif_ray.data.images import ImageSet, load_images
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.files import atomic_folder
from redif_ray.models.classifier import Classifier, Kind

CARD = """# {name}

A small `{kind}` classifier ({parameters:,} parameters), images {shape} in [0, 1], classes: {classes}.

| | |
|---|---|
| test accuracy | {accuracy:.2%} of {test_count:,} images that it was not trained on |
| trained on | {train_count:,} images: the {half} half of a seeded split of {data} |
| made by | `{command}` |

Use it as an encoder or judge of generated images that are like its training images. It is no general image encoder, and
distances in its features are comparable only with each other: they are not FID.

An encoder of a reward must not also be the judge: the two shipped classifiers were trained on disjoint halves of the
data and differ in architecture.

{licence}
"""
FASHION_MNIST_LICENCE = """Weights: the licence of this project. Data: Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv
1708.07747), MIT licence, Copyright (c) 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist."""


class ClassifierConfig(BaseModel):
    """The configuration of `train_classifier`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(description="labelled images with a train and a test split: a folder of IDX files")
    out: str = Field(description="the folder to write; must not exist")
    name: str = Field(description="its name in reports")
    kind: Kind = Field("conv", description="plain convolutions or a residual network")
    half: Literal["first", "second"] = Field("first", description="the half of the split to train on")
    split_seed: int = Field(20170825, ge=0, description="seed of the split; the same for both halves")
    epochs: int = Field(10, gt=0)
    batch: int = Field(128, gt=0)
    lr: float = Field(3e-3, gt=0, description="peak; linear warm-up over a tenth of the steps, then a cosine to zero")
    weight_decay: float = Field(0.05, ge=0)
    shift: int = Field(2, ge=0, description="each image is shifted by up to this many pixels, padded with zeros")
    seed: int = Field(0, ge=0)
    threads: int = Field(1, gt=0, description="CPU threads")


def split_rows(count: int, half: str, seed: int) -> np.ndarray:
    """Return the rows of one half of range(count), int64; the two halves are disjoint and cover all rows."""
    order = noise.permutation(count, Stream.TEACHER_DATA, seed=seed)
    return order[: count // 2] if half == "first" else order[count // 2 :]


def shifted(images: np.ndarray, limit: int, *, seed: int, step: int) -> np.ndarray:
    """Shift each of `images` [n, C, H, W] by uniform dy, dx in -limit..limit, which (seed, step) determine."""
    n, channels, height, width = images.shape
    moves = noise.uniform(2 * n, Stream.TEACHER_NOISE, seed=seed, step=step).reshape(2, n)
    offsets = (moves * (2 * limit + 1)).astype(np.int64)
    padded = np.pad(images, ((0, 0), (0, 0), (limit, limit), (limit, limit)))
    rows = (offsets[0, :, None] + np.arange(height))[:, None, :, None]
    columns = (offsets[1, :, None] + np.arange(width))[:, None, None, :]
    return padded[np.arange(n)[:, None, None, None], np.arange(channels)[None, :, None, None], rows, columns]


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = max(1, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def accuracy(model: Classifier, images: ImageSet) -> float:
    """Return the share of `images` whose label has the largest logit."""
    assert images.labels is not None
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 500):
            batch = torch.tensor(images.images[start : start + 500]).float() / 255
            right += int((model.logits(batch).argmax(1).numpy() == images.labels[start : start + 500]).sum())
    return right / len(images)


def train_classifier(config: ClassifierConfig, *, report: Callable[[dict[str, float]], None] = lambda _: None) -> Path:
    """Train on one half of the training images, measure on the test images, save with a card; returns the folder.

    report: function that gets epoch, loss, seconds and eta_seconds after every epoch. The weights are the same every
    time (CPU, same thread count). Raises FileExistsError, ValueError for data without labels or test images, and
    FloatingPointError for a loss that is not finite.
    """
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another `out` or move it away")
    torch.set_num_threads(config.threads)
    images, test = load_images(config.data), load_images(config.data, split="test")
    if images.labels is None or test.labels is None:
        raise ValueError(f"{config.data} has no labels; expected labelled images")
    if np.array_equal(images.images, test.images):
        raise ValueError(f"{config.data} has no test split of its own; expected a folder of IDX files with both")
    rows = split_rows(len(images), config.half, config.split_seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Classifier(config.kind, config.name, images.images.shape[1:], images.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    per_epoch = len(rows) // config.batch
    steps, started = config.epochs * per_epoch, time.monotonic()
    for epoch in range(config.epochs):
        order = rows[noise.permutation(len(rows), Stream.TEACHER_DATA, seed=config.seed, round=epoch + 1)]
        loss_sum = 0.0
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, config.lr)
            batch = order[i * config.batch : (i + 1) * config.batch]
            pixels = shifted(images.images[batch], config.shift, seed=config.seed, step=step)
            logits = model.logits(torch.from_numpy(pixels).float() / 255)
            loss = functional.cross_entropy(logits, torch.from_numpy(images.labels[batch]), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
        if not math.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum} in epoch {epoch + 1}; lower lr (now {config.lr})")
        seconds = time.monotonic() - started
        report(
            {
                "epoch": epoch + 1,
                "loss": loss_sum / per_epoch,
                "seconds": seconds,
                "eta_seconds": seconds / (epoch + 1) * (config.epochs - epoch - 1),
            }
        )
    _save(model.eval(), config, rows, test)
    return out


def _save(model: Classifier, config: ClassifierConfig, rows: np.ndarray, test: ImageSet) -> None:
    share = accuracy(model, test)
    settings = config.model_dump()
    overrides = " ".join(f"{key}={settings[key]}" for key in sorted(config.model_fields_set))
    command = f"python -m redif_ray.classifiers {overrides}"
    model.card = {
        "test_accuracy": share,
        "test_images": len(test),
        "train_images": len(rows),
        "training": settings,
        "split": {
            "seed": config.split_seed,
            "half": config.half,
            "rows_sha256": hashlib.sha256(np.sort(rows).astype("<i8").tobytes()).hexdigest(),
        },
        "command": command,
    }
    fashion_mnist = model.classes == FASHION_MNIST_CLASSES
    with atomic_folder(Path(config.out)) as partial:
        model.save(partial)
        (partial / "README.md").write_text(
            CARD.format(
                name=model.name,
                kind=model.kind,
                parameters=sum(p.numel() for p in model.parameters()),
                shape=model.image_shape,
                classes=", ".join(model.classes),
                accuracy=share,
                test_count=len(test),
                train_count=len(rows),
                half=config.half,
                command=command,
                data="Fashion-MNIST" if fashion_mnist else config.data,
                licence=FASHION_MNIST_LICENCE if fashion_mnist else "The licence of the data applies.",
            )
        )


def main(arguments: Sequence[str] | None = None) -> None:
    config: Any = load(None, list(sys.argv[1:] if arguments is None else arguments), ClassifierConfig)
    train_classifier(config, report=lambda row: print({k: round(v, 4) for k, v in row.items()}, flush=True))


if __name__ == "__main__":
    main()
