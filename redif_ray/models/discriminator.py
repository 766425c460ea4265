"""The network of the reward `discriminator`: its logit of an image separates two sets of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream

SLOPE = 0.2  # of the leaky rectifier below zero
WIDEST = 4  # most channels of a layer, in multiples of `width`
SMALLEST = 4  # largest edge of the last map, in pixels


class Discriminator(nn.Module):
    """A network that maps images [B, C, H, W], float in [0, 1], to logits [B].

    The network has strided 3 x 3 convolutions and a linear head on the last map. With `num_classes` the output of a
    head for the image's label is added (projection discriminator, Miyato and Koyama, arXiv 1802.05637). No layer mixes
    rows of the batch or has state beside its weights. The body starts He-normal, a function of (seed, layer) alone;
    the heads start at zero, so that an untrained discriminator prefers no image.
    """

    def __init__(self, image_shape: Sequence[int], *, width: int, num_classes: int = 0, seed: int = 0) -> None:
        super().__init__()
        channels, map_height, map_width = (int(n) for n in image_shape)
        layers: list[nn.Module] = []
        while not layers or max(map_height, map_width) > SMALLEST:
            outputs = width * min(2 ** len(layers), WIDEST)
            layers.append(skip_init(nn.Conv2d, channels, outputs, 3, 2, 1))
            channels, map_height, map_width = outputs, -(-map_height // 2), -(-map_width // 2)
        self.body = nn.ModuleList(layers)
        size = channels * map_height * map_width
        self.head = skip_init(nn.Linear, size, 1)
        self.class_heads = skip_init(nn.Embedding, num_classes, size) if num_classes else None
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for i, layer in enumerate(layers):
                weight = next(layer.parameters())
                z = noise.normal(weight.numel(), Stream.DISCRIMINATOR, seed=seed, group=i)
                weight.copy_(torch.from_numpy(z).reshape(weight.shape))
                weight.mul_((2 / (1 + SLOPE**2) / weight[0].numel()) ** 0.5)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the logits, [B]. labels: int64 [B], needed with classes and unused without."""
        x = images * 2 - 1
        for layer in self.body:
            x = functional.leaky_relu(layer(x), SLOPE)
        x = x.flatten(1)
        logits = self.head(x).squeeze(1)
        if self.class_heads is None:
            return logits
        if labels is None:
            raise ValueError("a discriminator of classes needs the label of every image")
        return logits + (self.class_heads(labels) * x).sum(1)
