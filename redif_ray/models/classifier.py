"""Small image classifiers: one is an encoder for rewards, another, of other shape and other data, judges the results.

A classifier is a folder of `config.json` and `model.safetensors` (float32). A loaded classifier is frozen, but
gradients still flow through it to the images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from redif_ray.errors import UserError, in_words
from redif_ray.models.foreign import check_header, read_settings
from redif_ray.models.protocol import is_finite

Kind = Literal["conv", "residual"]
FEATURES, EMBEDDING = 64, 64
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ClassifierError(UserError, ValueError):
    """A classifier folder, or images given to a classifier, that cannot be used; the message says what was expected."""


class _ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al., arXiv 1603.05027) with group normalisation (arXiv 1803.08494)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(functional.silu(self.norm2(y)))


def _conv_body(channels: int) -> nn.Sequential:
    """Return strided convolutions with batch normalisation, which reduce an image's edge to a quarter."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((channels, 32, 5, 2), (32, 64, 3, 2), (64, FEATURES, 3, 1)):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _residual_body(channels: int) -> nn.Sequential:
    """Return a stem and two residual blocks, which reduce an image's edge to a quarter."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, 2, 2, bias=False),
        _ResidualBlock(32, 64, 2),
        _ResidualBlock(64, FEATURES, 1),
        nn.GroupNorm(8, FEATURES),
        nn.SiLU(),
    )


class Classifier(nn.Module):
    """A network that maps images [B, C, H, W], float in [0, 1], to features, a 64-d embedding and logits.

    kind: `conv` (plain convolutions, batch normalisation) or `residual` (pre-activation ResNet, group normalisation).
    name: the classifier's name in reports. image_shape: (C, H, W). classes: names of the logits. card: facts for
    config.json.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        image_shape: Sequence[int],
        classes: Sequence[str],
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = (int(n) for n in image_shape)
        self.kind, self.name, self.card = kind, name, card or {}
        self.image_shape = (channels, height, width)
        self.classes = tuple(classes)
        if kind == "conv":
            self.body = _conv_body(channels)
        elif kind == "residual":
            self.body = _residual_body(channels)
        else:
            raise ClassifierError(f"classifier kind {kind!r}: expected conv or residual")
        self.project = nn.Linear(FEATURES * -(-height // 4) * -(-width // 4), EMBEDDING)
        self.head = nn.Linear(EMBEDDING, len(self.classes))

    def features(self, images: Tensor) -> Tensor:
        """Return the last convolutional map, [B, 64, ceil(H / 4), ceil(W / 4)]."""
        check_images(images, self.name, self.image_shape)
        return self.body(images * 2 - 1)

    def embedding(self, images: Tensor) -> Tensor:
        """Return the penultimate layer, [B, 64], before its rectifier, where it is closer to Gaussian than after."""
        return self.project(self.features(images).flatten(1))

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images, [B, number of classes]."""
        return self.logits_of(self.embedding(images))

    def logits_of(self, embedding: Tensor) -> Tensor:
        """Return the logits of images with this `embedding` [B, 64]."""
        return self.head(functional.relu(embedding))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, which is created if necessary."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"kind": self.kind, "name": self.name, "image_shape": self.image_shape, "classes": self.classes}
        (folder / CONFIG).write_text(json.dumps(config | {"card": self.card}, indent=2, ensure_ascii=False) + "\n")
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)


def check_images(images: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise ClassifierError unless `images` are float [B, *shape] in [0, 1]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or not images.is_floating_point():
        raise ClassifierError(
            f"classifier {name}: images are {images.dtype} {tuple(images.shape)}; "
            f"expected float [batch, {', '.join(map(str, shape))}]"
        )
    if images.numel():
        low, high = (value.item() for value in images.detach().aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails too
            raise ClassifierError(f"classifier {name}: images span [{low:.4g}, {high:.4g}]; expected [0, 1]")


def load_classifier(folder: str | Path) -> Classifier:
    """Load the classifier in `folder` onto the CPU, frozen and in eval mode. Raises `ClassifierError`."""
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ClassifierError(f"{folder} is not a classifier: it has no {name}; expected {CONFIG} and {WEIGHTS}")
    try:
        model = Classifier(**read_settings(folder / CONFIG, folder))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ClassifierError(f"{folder / CONFIG} is not a classifier's configuration: {in_words(error)}") from error
    try:
        check_header(folder / WEIGHTS, folder)
        weights = load_file(folder / WEIGHTS)
        model.load_state_dict(weights)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ClassifierError(
            f"{folder / WEIGHTS} does not hold this classifier's weights: {in_words(error)}"
        ) from error
    if broken := [name for name, value in model.state_dict().items() if not is_finite(value.float())]:
        raise ClassifierError(f"{folder / WEIGHTS}: weight {broken[0]} is NaN or infinite; copy the file again")
    return model.eval().requires_grad_(False)
