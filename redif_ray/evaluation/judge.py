"""The judge: features that no reward uses, and the reference images that generated images are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

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
    """Raised for a judge that cannot be loaded or for inputs that it does not take."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Images [n, C, H, W] float in [0, 1], and their `features` [n, D] float64 by a judge."""

    images: Tensor
    features: np.ndarray


class Judge:
    """A frozen encoder and its reference images, whose features and statistics are computed once.

    device: device of the encoder.
    elsewhere: function from images [n, C, H, W] to features [n, D] that computes them in other processes; None: the
        encoder computes them here.
    Raises JudgeError if the reference images do not have the encoder's shape.
    """

    def __init__(
        self,
        encoder: Encoder,
        reference: ImageSet,
        *,
        device: str | torch.device = "cpu",
        elsewhere: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if reference.images.shape[1:] != encoder.image_shape:
            shape = reference.images.shape[1:]
            raise JudgeError(f"reference images are {shape}; judge {encoder.name} expects {encoder.image_shape}")
        self.encoder, self.reference, self.device, self.elsewhere = encoder, reference, device, elsewhere

    @property
    def name(self) -> str:
        return self.encoder.name

    def embed(self, images: Tensor) -> np.ndarray:
        """Return the features [n, D] float64 of images [n, C, H, W] float in [0, 1]. Raises JudgeError for others."""
        if images.dtype not in (torch.float32, torch.float64):
            raise JudgeError(f"images are {images.dtype}; expected float in [0, 1]")
        features = self.elsewhere(images) if self.elsewhere else embedded(self.encoder, images, self.device)
        return features.double().numpy()

    def see(self, images: Tensor) -> Seen:
        return Seen(images, self.embed(images))

    def reference_features(self) -> np.ndarray:
        """Return the features [m, D] float64 of all reference images."""
        return self._features

    def class_accuracy(self, features: np.ndarray, labels: Sequence[int]) -> float | None:
        """Return the share of images that the judge puts into their labels' classes, or None if it has no classes.

        features: features [n, D] of the images. labels: class index of each image, in [0, classes).
        Raises JudgeError for another number of labels and for labels out of range.
        """
        if not isinstance(self.encoder, Classifier):
            return None
        if len(features) != len(labels) or not len(labels):
            raise JudgeError(
                f"{len(features)} images and {len(labels)} labels; expected one label per image, and at least one"
            )
        count = len(self.encoder.classes)
        if not all(0 <= label < count for label in labels):
            raise JudgeError(f"labels span {min(labels)}..{max(labels)}; judge {self.name} knows {count} classes")
        with torch.no_grad():
            predicted = self.encoder.logits_of(torch.from_numpy(features).float().to(self.device)).argmax(1)
        return float((predicted.cpu() == torch.tensor(labels)).double().mean())

    def caption_cosine(self, features: np.ndarray, captions: Sequence[str]) -> float | None:
        """Return the mean cosine of images, given as features [n, D], and their captions; None if not a CLIP."""
        if not isinstance(self.encoder, ClipFeatures):
            return None
        return float(self.encoder.caption_cosine(torch.from_numpy(features).float(), captions).double().mean())

    @cached_property
    def frechet(self) -> Callable[[np.ndarray], float]:
        """Return the function from features [n, D] to their Fréchet distance to the reference."""
        return frechet_to(self._features)

    @cached_property
    def kid(self) -> Callable[[np.ndarray], tuple[float, float]]:
        """Return the function from features [n, D] to (KID, standard error) against the reference.

        All features are divided by the reference's root mean square; otherwise x . y / d dwarfs the kernel's 1.
        """
        scale = np.sqrt(np.square(self._features).mean())
        distance = kid_to(self._features / scale)
        return lambda features: distance(features / scale)

    @cached_property
    def _features(self) -> np.ndarray:
        return self.embed(torch.tensor(self.reference.images).float() / 255)


@torch.no_grad()
def embedded(encoder: Encoder, images: Tensor, device: str | torch.device) -> Tensor:
    """Return the features [n, D] float32 on the CPU of images [n, C, H, W] float in [0, 1].

    device: device of the encoder.
    """
    return torch.cat([encoder.embedding(batch.float().to(device)).cpu() for batch in images.split(BATCH)])


def needs_reference(source: str) -> bool:
    """Tell whether a judge has no reference images of its own and needs the teacher's.

    Random features and CLIP have none.
    """
    return source == NAME or (source not in JUDGES and not (Path(source) / REFERENCE).is_file())


def make_encoder(source: str, image_shape: Sequence[int], device: str | torch.device = "cpu") -> Encoder:
    """Load the encoder of a judge that has no reference images of its own. Raises JudgeError for another name."""
    if source == NAME:
        return RandomFeatures(image_shape).to(device)
    names = f"{', '.join([*JUDGES, NAME])}, a classifier's folder that holds {REFERENCE}, or a CLIP's folder or hub id"
    if not Path(source).is_dir() and "/" not in source and not (SHIPPED / source).is_dir():
        raise JudgeError(f"no judge {source!r}; expected {names}")
    try:
        return ClipFeatures(source, image_shape, device)
    except RewardError as error:
        raise JudgeError(f"no judge {source!r}; expected {names} ({error})") from error


def load_encoder(source: str, image_shape: Sequence[int], device: str | torch.device) -> Encoder:
    """Load the encoder of any judge. Raises JudgeError and the errors of `load_classifier`."""
    if needs_reference(source):
        return make_encoder(source, image_shape, device)
    return load_classifier(_files(source)[0]).to(device)


def networks_of(encoder: Encoder) -> list[Module]:
    """Return the networks of an encoder that embed images."""
    return [encoder.network] if isinstance(encoder, ClipFeatures) else [encoder]


def judge_of_images(source: str, images: np.ndarray, **options: Any) -> Judge:
    """Build a judge whose reference is `images` [m, C, H, W] float in [0, 1]; no labels and no files are needed.

    options: keyword arguments of `Judge`.
    """
    pixels = np.rint(255 * images).astype(np.uint8)
    encoder = make_encoder(source, images.shape[1:], options.get("device", "cpu"))
    return Judge(encoder, ImageSet(pixels, None, ()), **options)


def load_judge(source: str, **options: Any) -> Judge:
    """Load a judge that has reference images of its own.

    source: name of a shipped judge, or folder of a classifier that also holds `reference.parquet`.
    options: keyword arguments of `Judge`.
    Raises the errors of `load_classifier` and `load_images`.
    """
    classifier, reference = _files(source)
    return Judge(load_classifier(classifier).to(options.get("device", "cpu")), load_images(reference), **options)


def _files(source: str) -> tuple[Path, Path]:
    """Return the folder of a judge's classifier and the path of its reference images."""
    return JUDGES.get(source, (Path(source), Path(source) / REFERENCE))
