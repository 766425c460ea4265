"""The command `redif train-judge`: train a small classifier as a reward's encoder or as a judge.

An encoder and a judge must not share data, so each is trained on its own half of a seeded split, which the folder
records.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from redif_ray.classifiers.config import ClassifierConfig, JudgeTrainingError
from redif_ray.data.arrays import FASHION_MNIST_CLASSES
from redif_ray.data.images import ImageSet, load_images
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.files import atomic_folder
from redif_ray.models.classifier import Classifier

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


def read_images(config: ClassifierConfig) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images. Raises UserError and FileExistsError.

    Of data without a test split, a tenth that `split_seed` draws is the test, whichever half is trained on.
    """
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another `out` or move it away")
    read = partial(load_images, config.data, size=config.size, label=config.label, background=config.background)
    images = read()
    if images.labels is None:
        raise JudgeTrainingError(f"{config.data} has no labels; expected labelled images")
    if "test" in images.findings.splits:
        test = read(split="test").with_classes(images.classes)
        if test.labels is None or test.images.shape[1:] != images.images.shape[1:]:
            lacking = "have no labels" if test.labels is None else f"are {test.images.shape[1:]}"
            raise JudgeTrainingError(
                f"{config.data}: the test images {lacking}; expected labelled ones of {images.images.shape[1:]}, as "
                "those for training; set size"
            )
    else:
        order = noise.permutation(len(images), Stream.TEACHER_DATA, seed=config.split_seed, round=1)
        apart = max(1, len(images) // 10)
        images, test = images.rows(np.sort(order[apart:])), images.rows(np.sort(order[:apart]))
    half = len(images) // 2
    if half < config.batch:
        raise JudgeTrainingError(
            f"batch={config.batch}: half of the training images of {config.data} are {half}; set a smaller batch, or "
            "give more images"
        )
    return images, test


def train_classifier(
    config: ClassifierConfig,
    data: tuple[ImageSet, ImageSet] | None = None,
    *,
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> Path:
    """Train on one half of the training images, measure on the test images, save with a card; return the folder.

    data: what `read_images` returned; None: read it. report: function that gets epoch, loss, seconds and eta_seconds
    after every epoch. The weights are the same every time (CPU, same thread count). Raises UserError for data without
    labels, or too few of them, and for a loss that is not finite.
    """
    torch.set_num_threads(config.threads)
    images, test = read_images(config) if data is None else data
    assert images.labels is not None
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
            raise JudgeTrainingError(f"the loss is {loss_sum} in epoch {epoch + 1}; lower lr (now {config.lr})")
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
    return Path(config.out)


def _save(model: Classifier, config: ClassifierConfig, rows: np.ndarray, test: ImageSet) -> None:
    share = accuracy(model, test)
    settings = config.model_dump()
    command = shlex.join(
        ["redif", "train-judge", *(f"{key}={settings[key]}" for key in sorted(config.model_fields_set))]
    )
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
