"""The judge: features that no reward uses, and the images that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redif_ray.data.images import ImageSet, load_images
from redif_ray.errors import UserError
from redif_ray.evaluation.clip_features import ClipFeatures
from redif_ray.evaluation.frechet import frechet_to
from redif_ray.evaluation.kid import kid_to
from redif_ray.evaluation.random_features import NAME, RandomFeatures
from redif_ray.models.classifier import Classifier, load_classifier
from redif_ray.rewards.pretrained import SHIPPED
from redif_ray.rewards.term import RewardError

ASSETS = Path(__file__).parents[1] / "assets"
JUDGES = {  # name: (classifier, reference images)
    "fashion-mnist": (ASSETS / "judges/fashion_mnist_b", ASSETS / "reference/fashion_mnist_test.parquet"),
}
Encoder = Classifier | RandomFeatures | ClipFeatures
REFERENCE = "reference.parquet"
BATCH = 250


class JudgeError(UserError, ValueError):
    """A judge that cannot be loaded or asked; the message says what was expected."""


class Judge:
    """A frozen encoder and its reference set. Features, and what the set metrics need of them, are computed once.

    Knows classes where its encoder is a classifier.
    """

    def __init__(self, encoder: Encoder, reference: ImageSet) -> None:
        if reference.images.shape[1:] != encoder.image_shape:
            found = reference.images.shape[1:]
            raise JudgeError(f"judge {encoder.name} sees {encoder.image_shape}, its reference images are {found}")
        self.encoder, self.reference = encoder, reference

    @property
    def name(self) -> str:
        return self.encoder.name

    def embed(self, images: Tensor) -> np.ndarray:
        """The judge's features of `images` [n, C, H, W] float in [0, 1]: [n, D] float64."""
        return self._map(self.encoder.embedding, images).double().numpy()

    def reference_features(self) -> np.ndarray:
        """Those of all reference images, [m, D] float64."""
        return self._features

    def class_accuracy(self, images: Tensor, labels: Sequence[int]) -> float | None:
        """The share of `images` [n, C, H, W] that the judge puts into the class of its label, each in [0, classes).

        None where the judge knows no classes.
        """
        if not isinstance(self.encoder, Classifier):
            return None
        if len(images) != len(labels) or not len(labels):
            raise JudgeError(f"{len(images)} images and {len(labels)} labels; expected as many, and at least one")
        count = len(self.encoder.classes)
        if not all(0 <= label < count for label in labels):
            raise JudgeError(f"labels span {min(labels)}..{max(labels)}; judge {self.name} knows {count} classes")
        found = self._map(self.encoder.logits, images).argmax(1)
        return float((found == torch.tensor(labels)).double().mean())

    def caption_cosine(self, images: Tensor, captions: Sequence[str]) -> float | None:
        """The mean cosine of `images` [n, C, H, W] and their captions; None where the judge reads none."""
        if not isinstance(self.encoder, ClipFeatures):
            return None
        return float(self.encoder.caption_cosine(images.float().cpu(), captions).double().mean())

    @cached_property
    def frechet(self) -> Callable[[np.ndarray], float]:
        """`evaluation.frechet` against the reference."""
        return frechet_to(self._features)

    @cached_property
    def kid(self) -> Callable[[np.ndarray], tuple[float, float]]:
        """`evaluation.kid` against the reference, in units of its root mean square: else x . y / d dwarfs the 1."""
        scale = np.sqrt(np.square(self._features).mean())
        distance = kid_to(self._features / scale)
        return lambda features: distance(features / scale)

    @cached_property
    def _features(self) -> np.ndarray:
        return self.embed(torch.tensor(self.reference.images).float() / 255)

    @torch.no_grad()
    def _map(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if images.dtype not in (torch.float32, torch.float64):
            raise JudgeError(f"images are {images.dtype}; expected float in [0, 1]")
        return torch.cat([function(batch.float().cpu()) for batch in images.split(BATCH)])


def needs_reference(source: str) -> bool:
    """Whether a judge brings no images of its own, and compares with the teacher's: random features, and CLIP."""
    return source == NAME or (source not in JUDGES and not (Path(source) / REFERENCE).is_file())


def make_encoder(source: str, image_shape: Sequence[int]) -> Encoder:
    """The features of a judge that brings no images. Raises JudgeError where it is none."""
    if source == NAME:
        return RandomFeatures(image_shape)
    names = f"{', '.join([*JUDGES, NAME])}, a classifier's folder that holds {REFERENCE}, or a CLIP's folder or hub id"
    if not Path(source).is_dir() and "/" not in source and not (SHIPPED / source).is_dir():
        raise JudgeError(f"no judge {source!r}; expected {names}")
    try:
        return ClipFeatures(source, image_shape)
    except RewardError as error:
        raise JudgeError(f"no judge {source!r}; expected {names} ({error})") from error


def judge_of_images(source: str, images: np.ndarray) -> Judge:
    """A judge that compares with `images` [m, C, H, W] float in [0, 1]: no labels and no data are asked for."""
    pixels = np.rint(255 * images).astype(np.uint8)
    return Judge(make_encoder(source, images.shape[1:]), ImageSet(pixels, None, ()))


def load_judge(source: str) -> Judge:
    """A shipped judge by name, or the folder of a classifier that holds its reference images as `reference.parquet`.

    Raises the errors of `load_classifier` and `load_images`.
    """
    classifier, reference = JUDGES.get(source, (Path(source), Path(source) / REFERENCE))
    return Judge(load_classifier(classifier), load_images(reference))
