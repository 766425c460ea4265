"""The judge: features that no reward uses, and the images that generated ones are compared with."""

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
    """A judge that cannot be loaded or asked; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Images [n, C, H, W] float in [0, 1], and a judge's `features` of them, [n, D] float64."""

    images: Tensor
    features: np.ndarray


class Judge:
    """A frozen encoder and its reference set. The reference's features, and what metrics need of them, are found once.

    Knows classes where its encoder is a classifier. device: of the encoder.
    elsewhere: what the encoder makes of images, where others compute it.
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
            found = reference.images.shape[1:]
            raise JudgeError(f"judge {encoder.name} sees {encoder.image_shape}, its reference images are {found}")
        self.encoder, self.reference, self.device, self.elsewhere = encoder, reference, device, elsewhere

    @property
    def name(self) -> str:
        return self.encoder.name

    def embed(self, images: Tensor) -> np.ndarray:
        """The judge's features of `images` [n, C, H, W] float in [0, 1]: [n, D] float64."""
        if images.dtype not in (torch.float32, torch.float64):
            raise JudgeError(f"images are {images.dtype}; expected float in [0, 1]")
        found = self.elsewhere(images) if self.elsewhere else embedded(self.encoder, images, self.device)
        return found.double().numpy()

    def see(self, images: Tensor) -> Seen:
        return Seen(images, self.embed(images))

    def reference_features(self) -> np.ndarray:
        """Those of all reference images, [m, D] float64."""
        return self._features

    def class_accuracy(self, features: np.ndarray, labels: Sequence[int]) -> float | None:
        """The share of images, by their features, that the judge puts into the class of its label, in [0, classes).

        None where the judge knows no classes.
        """
        if not isinstance(self.encoder, Classifier):
            return None
        if len(features) != len(labels) or not len(labels):
            raise JudgeError(f"{len(features)} images and {len(labels)} labels; expected as many, and at least one")
        count = len(self.encoder.classes)
        if not all(0 <= label < count for label in labels):
            raise JudgeError(f"labels span {min(labels)}..{max(labels)}; judge {self.name} knows {count} classes")
        with torch.no_grad():
            found = self.encoder.logits_of(torch.from_numpy(features).float().to(self.device)).argmax(1)
        return float((found.cpu() == torch.tensor(labels)).double().mean())

    def caption_cosine(self, features: np.ndarray, captions: Sequence[str]) -> float | None:
        """The mean cosine of images, by their features, and their captions; None where the judge reads none."""
        if not isinstance(self.encoder, ClipFeatures):
            return None
        return float(self.encoder.caption_cosine(torch.from_numpy(features).float(), captions).double().mean())

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
def embedded(encoder: Encoder, images: Tensor, device: str | torch.device) -> Tensor:
    """What an encoder on `device` makes of images [n, C, H, W] float in [0, 1]: [n, D] float32 on the CPU."""
    return torch.cat([encoder.embedding(batch.float().to(device)).cpu() for batch in images.split(BATCH)])


def needs_reference(source: str) -> bool:
    """Whether a judge brings no images of its own, and compares with the teacher's: random features, and CLIP."""
    return source == NAME or (source not in JUDGES and not (Path(source) / REFERENCE).is_file())


def make_encoder(source: str, image_shape: Sequence[int], device: str | torch.device = "cpu") -> Encoder:
    """The features of a judge that brings no images. Raises JudgeError where it is none."""
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
    """What any judge sees with. Raises JudgeError and the errors of `load_classifier`."""
    if needs_reference(source):
        return make_encoder(source, image_shape, device)
    return load_classifier(_files(source)[0]).to(device)


def networks_of(encoder: Encoder) -> list[Module]:
    """What embeds images with it."""
    return [encoder.network] if isinstance(encoder, ClipFeatures) else [encoder]


def judge_of_images(source: str, images: np.ndarray, **options: Any) -> Judge:
    """A judge that compares with `images` [m, C, H, W] float in [0, 1]: no labels and no data are asked for.

    options: of the Judge.
    """
    pixels = np.rint(255 * images).astype(np.uint8)
    encoder = make_encoder(source, images.shape[1:], options.get("device", "cpu"))
    return Judge(encoder, ImageSet(pixels, None, ()), **options)


def load_judge(source: str, **options: Any) -> Judge:
    """A shipped judge by name, or the folder of a classifier that holds its reference images as `reference.parquet`.

    options: of the Judge. Raises the errors of `load_classifier` and `load_images`.
    """
    classifier, reference = _files(source)
    return Judge(load_classifier(classifier).to(options.get("device", "cpu")), load_images(reference), **options)


def _files(source: str) -> tuple[Path, Path]:
    """The folder of a classifier, and the images that it compares with."""
    return JUDGES.get(source, (Path(source), Path(source) / REFERENCE))
