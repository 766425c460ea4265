"""Minus the learned perceptual distance LPIPS (Zhang et al., arXiv 1801.03924), version 0.1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import Module

from redif_ray.rewards.preparation import enlarged
from redif_ray.rewards.pretrained import imported
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting, one_a_group
from redif_ray.rewards.weight_file import TO_SAFETENSORS, load_weights

PIP = "pip install lpips==0.1.4 torchvision"
EDGE = 64  # pixels; LPIPS was fitted on patches of this size, so smaller images are enlarged
EPS = 1e-10
URLS = {  # torchvision's IMAGENET1K_V1; a file's name ends in the start of its sha256
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
}


@plain_dataclass(eq=False)
class Backbone:
    """The network that LPIPS compares images with.

    maps: function from images [B, 3, H, W] in [-1, 1] to feature maps [B, C_l, h_l, w_l] of the layers l.
    heads: weights [C_l] of each map.
    """

    network: Module
    maps: Callable[[Tensor], Sequence[Tensor]]
    heads: Sequence[Tensor]


@dataclass(config=OPTIONS)
class Lpips:
    """-LPIPS(student, teacher) <= 0, on images in [-1, 1]; images with an edge below 64 pixels are enlarged to 64.

    net: the backbone. batch: pairs per forward pass.
    weights: path of the backbone's ImageNet weights, torchvision's state dict as safetensors; None: torch's hub cache,
        or a download.
    """

    setting: Setting
    net: Literal["alex", "vgg", "squeeze"] = "alex"
    weights: str | None = None
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "lpips"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        if self.setting.image_shape[0] not in (1, 3):
            raise RewardError(f"images are {self.setting.image_shape}; LPIPS takes 1 or 3 channels")
        self._backbone = load_backbone(self.net, self.weights, self.setting.device)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        pairs = zip(inputs.student.split(self.batch), inputs.teacher.split(self.batch), strict=True)
        return -torch.cat([self._distance(student, teacher) for student, teacher in pairs])

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            images, row = one_a_group(teacher)
            targets = [each[row] for each in self._maps(images)]
        return distance(self._maps(student), targets, self._backbone.heads)

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        images = enlarged(images.to(self._backbone.heads[0].dtype), EDGE).expand(-1, 3, -1, -1)
        return self._backbone.maps(2 * images - 1)


def distance(x: Iterable[Tensor], y: Iterable[Tensor], heads: Iterable[Tensor]) -> Tensor:
    """Return, [B], the sum over layers of the mean over positions of sum_c w_c (x_c / |x| - y_c / |y|)^2.

    x, y: feature maps [B, C_l, h_l, w_l] of the layers l. heads: weights w [C_l] of the layers.
    """
    layers = [
        torch.einsum("bchw,c->bhw", (_unit(a) - _unit(b)).square(), w).mean((1, 2))
        for a, b, w in zip(x, y, heads, strict=True)
    ]
    return torch.stack(layers).sum(0)


def _unit(features: Tensor) -> Tensor:
    length = features.square().sum(1, keepdim=True).clamp(min=EPS**2).sqrt()  # sqrt has no finite gradient at 0
    return features / (length + EPS)


def load_backbone(net: str, weights: str | None, device: torch.device) -> Backbone:
    """Build the network and heads of the package lpips, with the backbone's weights from a file or torch's hub.

    Raises `RewardError` if the package or the weights are missing or do not fit.
    """
    package = imported("lpips", PIP)
    with torch.random.fork_rng(devices=[]):  # the constructor draws random weights, which are replaced below
        metric = package.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
    given = load_weights("weights", weights) if weights else _download(net)
    own = metric.net.state_dict()
    theirs = {name: "features." + name.split(".", 1)[1] for name in own}  # slice2.3.weight: features.3.weight
    wrong = [name for ours, name in theirs.items() if name not in given or given[name].shape != own[ours].shape]
    if wrong:
        raise RewardError(
            f"weights={weights!r} lacks {', '.join(wrong[:3])} or has them in another shape; expected "
            f"torchvision's state dict of net={net}"
        )
    metric.net.load_state_dict({ours: given[name] for ours, name in theirs.items()})
    metric.to(device)
    heads = [lin.model[-1].weight.flatten() for lin in metric.lins]
    return Backbone(metric, lambda images: metric.net(metric.scaling_layer(images)), heads)


def _download(net: str) -> dict[str, Any]:
    try:
        return torch.hub.load_state_dict_from_url(
            URLS[net], map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (OSError, RuntimeError) as error:  # the network is unreachable, or the hash is wrong
        raise RewardError(
            f"{URLS[net]} cannot be fetched ({error}); fetch it on another machine, convert it: python -c "
            f'"{TO_SAFETENSORS}", and give the file as option `weights`'
        ) from error
