"""The judge: a classifier that gives no rewards, and the real images that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redif_ray.data.images import ImageSet, load_images
from redif_ray.errors import UserError
from redif_ray.evaluation.frechet import frechet_to
from redif_ray.evaluation.kid import kid_to
from redif_ray.models.classifier import Classifier, load_classifier

ASSETS = Path(__file__).parents[1] / "assets"
JUDGES = {  # name: (classifier, reference images)
    "fashion-mnist": (ASSETS / "judges/fashion_mnist_b", ASSETS / "reference/fashion_mnist_test.parquet"),
}
REFERENCE = "reference.parquet"
BATCH = 250


class JudgeError(UserError, ValueError):
    """A judge that cannot be loaded or asked; the message says what was expected."""


class Judge:
    """A frozen classifier and its reference set. Features, and what the set metrics need of them, are computed once."""

    def __init__(self, classifier: Classifier, reference: ImageSet) -> None:
        if reference.images.shape[1:] != classifier.image_shape:
            found = reference.images.shape[1:]
            raise JudgeError(f"judge {classifier.name} sees {classifier.image_shape}, its reference images are {found}")
        self.classifier, self.reference = classifier, reference

    @property
    def name(self) -> str:
        return self.classifier.name

    def embed(self, images: Tensor) -> np.ndarray:
        """The judge's features of `images` [n, C, H, W] float in [0, 1]: [n, 64] float64."""
        return self._map(self.classifier.embedding, images).double().numpy()

    def reference_features(self) -> np.ndarray:
        """Those of all reference images, [m, 64] float64."""
        return self._features

    def class_accuracy(self, images: Tensor, labels: Sequence[int]) -> float:
        """The share of `images` [n, C, H, W] that the judge puts into the class of its label, each in [0, classes)."""
        if len(images) != len(labels) or not len(labels):
            raise JudgeError(f"{len(images)} images and {len(labels)} labels; expected as many, and at least one")
        count = len(self.classifier.classes)
        if not all(0 <= label < count for label in labels):
            raise JudgeError(f"labels span {min(labels)}..{max(labels)}; judge {self.name} knows {count} classes")
        found = self._map(self.classifier.logits, images).argmax(1)
        return float((found == torch.tensor(labels)).double().mean())

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


def load_judge(source: str | Path) -> Judge:
    """A shipped judge by name, or the folder of a classifier that holds its reference images as `reference.parquet`.

    Raises JudgeError where it is neither, and the errors of `load_classifier` and `load_images`.
    """
    if str(source) in JUDGES:
        classifier, reference = JUDGES[str(source)]
    elif Path(source).is_dir():
        classifier, reference = Path(source), Path(source) / REFERENCE
    else:
        names = ", ".join(JUDGES)
        raise JudgeError(f"no judge {str(source)!r}; expected {names}, or a classifier's folder that holds {REFERENCE}")
    return Judge(load_classifier(classifier), load_images(reference))
