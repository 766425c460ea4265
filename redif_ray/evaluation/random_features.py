"""Features of an untrained network, for images of which no trained encoder exists.

Naeem et al. (arXiv 2002.09797, section 4) embed images with randomly initialised networks (their R64) and find these
more reliable than ImageNet's features for images unlike ImageNet's. Distances in random features compare only with
each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.judge_source import RANDOM_FEATURES
from redif_ray.models.classifier import EMBEDDING, check_images

WIDTHS = (32, 64, 64)  # channels of the first layers; later layers are as wide as the last of these
SMALLEST = 4  # edge of the feature map, in pixels, at which it is projected


class RandomFeatures(nn.Module):
    """Strided 3 x 3 convolutions with ReLU and a projection, from images [B, C, H, W] float in [0, 1] to [B, 64].

    Weights are He-normal and a function of image_shape alone (the noise recipe), so every process has the same weights.
    """

    name = RANDOM_FEATURES

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = self.image_shape = tuple(int(n) for n in image_shape)
        layers: list[nn.Module] = []
        while max(height, width) > SMALLEST:
            outputs = WIDTHS[min(len(layers), len(WIDTHS) - 1)]
            layers.append(skip_init(nn.Conv2d, channels, outputs, 3, 2, 1, bias=False))
            channels, height, width = outputs, -(-height // 2), -(-width // 2)
        self.body = nn.ModuleList(layers)
        self.project = skip_init(nn.Linear, channels * height * width, EMBEDDING, bias=False)
        with torch.no_grad():
            for i, weight in enumerate(self.parameters()):
                z = torch.from_numpy(noise.normal(weight.numel(), Stream.JUDGE, seed=0, group=i)).reshape(weight.shape)
                weight.copy_(z * (2 / weight[0].numel()) ** 0.5)
        self.eval().requires_grad_(False)

    def embedding(self, images: Tensor) -> Tensor:
        check_images(images, self.name, self.image_shape)
        x = images * 2 - 1
        for layer in self.body:
            x = functional.relu(layer(x))
        return self.project(x.flatten(1))
