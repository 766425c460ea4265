"""The encoders of judges: networks that embed images and that no reward uses, with the reference images they bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.errors import UserError
from redif_ray.evaluation.clip_features import ClipFeatures
from redif_ray.evaluation.judge_source import JUDGES, RANDOM_FEATURES, REFERENCE, judge_files, needs_reference
from redif_ray.evaluation.random_features import RandomFeatures
from redif_ray.models.classifier import Classifier, load_classifier
from redif_ray.rewards.pretrained import SHIPPED
from redif_ray.rewards.term import RewardError
from redif_ray.types import Condition

Encoder = Classifier | RandomFeatures | ClipFeatures
BATCH = 250


class JudgeError(UserError, ValueError):
    """Raised for a judge that cannot be loaded or for inputs that it does not take."""


def load_encoder(source: str, image_shape: Sequence[int], device: str | torch.device = "cpu") -> Encoder:
    """Load the encoder of any judge.

    source: a shipped judge, "random-features", a CLIP, or the folder of a classifier that also holds
        `reference.parquet`. image_shape: (C, H, W) of the images.
    Raises JudgeError and the errors of `load_classifier`.
    """
    if needs_reference(source):
        return make_encoder(source, image_shape, device)
    return load_classifier(judge_files(source)[0]).to(device)


def make_encoder(source: str, image_shape: Sequence[int], device: str | torch.device = "cpu") -> Encoder:
    """Load the encoder of a judge that has no reference images of its own. Raises JudgeError for another name."""
    if source == RANDOM_FEATURES:
        return RandomFeatures(image_shape).to(device)
    shipped = ", ".join([*JUDGES, RANDOM_FEATURES])
    names = f"{shipped}, a classifier's folder that holds {REFERENCE}, or a CLIP's folder or hub id"
    if not Path(source).is_dir() and "/" not in source and not (SHIPPED / source).is_dir():
        raise JudgeError(f"no judge {source!r}; expected {names}")
    try:
        return ClipFeatures(source, image_shape, device)
    except RewardError as error:
        raise JudgeError(f"no judge {source!r}; expected {names} ({error})") from error


def networks_of(encoder: Encoder) -> list[Module]:
    """Return the networks of an encoder that embed images."""
    return [encoder.network] if isinstance(encoder, ClipFeatures) else [encoder]


@torch.no_grad()
def embedded(encoder: Encoder, images: Tensor, device: str | torch.device) -> np.ndarray:
    """Return the features [n, D] float32 of images [n, C, H, W] float in [0, 1]; other images raise JudgeError.

    device: device of the encoder.
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise JudgeError(f"images are {images.dtype}; expected float in [0, 1]")
    return torch.cat([encoder.embedding(batch.float().to(device)).cpu() for batch in images.split(BATCH)]).numpy()


def knows(encoder: Encoder, labels: Sequence[Condition]) -> bool:
    """Tell whether there are labels, and all of them are classes of the encoder."""
    classes = range(len(encoder.classes)) if isinstance(encoder, Classifier) else range(0)
    return bool(labels) and all(label in classes for label in labels)


@torch.no_grad()
def fit(encoder: Encoder, features: np.ndarray, conditions: Sequence[Condition]) -> dict[str, np.ndarray]:
    """Return how well each image fits its condition, by name, [n] float64.

    class_accuracy: 1 where a classifier puts the image into the class of its condition, else 0. caption_cosine: cosine
    of the image and its caption by CLIP. The result is empty where the encoder knows no such conditions.
    features: the encoder's features [n, D] of the images. conditions: n of them.
    Raises JudgeError for another number of conditions and for labels out of range.
    """
    if len(features) != len(conditions) or not len(conditions):
        raise JudgeError(f"{len(features)} images and {len(conditions)} conditions; expected one condition an image")
    given = torch.from_numpy(features)
    captions = [c for c in conditions if isinstance(c, str)]
    if isinstance(encoder, ClipFeatures) and len(captions) == len(conditions):
        return {"caption_cosine": encoder.caption_cosine(given, captions).double().numpy()}
    labels = [int(c) for c in conditions if isinstance(c, int | np.integer)]
    if isinstance(encoder, Classifier) and len(labels) == len(conditions):
        count = len(encoder.classes)
        if not all(0 <= label < count for label in labels):
            raise JudgeError(f"labels span {min(labels)}..{max(labels)}; judge {encoder.name} knows {count} classes")
        predicted = encoder.logits_of(given.to(next(encoder.parameters()).device)).argmax(1).cpu()
        return {"class_accuracy": (predicted == torch.tensor(labels)).double().numpy()}
    return {}
