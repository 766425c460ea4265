"""Predicted human rating of an image: the LAION predictors on CLIP embeddings (Schuhmann et al., arXiv 2210.08402)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.clip_network import DEFAULT_MODEL, clip_images
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.rewards.weight_file import load_weights

Layers = list[tuple[Tensor, Tensor]]  # weight [out, in], bias [out]


@dataclass(config=OPTIONS)
class Aesthetic:
    """The output of a linear head on the student's CLIP image embedding of length 1; LAION's heads give about 1 to 10.

    head: path of the head's safetensors file: one linear layer, or the layers `layers.0` to `layers.7` of the improved
        aesthetic predictor, which has no activations between them.
    model: the CLIP that the head was trained on, a folder or a hub id. batch: images per forward pass.
    """

    setting: Setting
    head: str
    model: str = DEFAULT_MODEL
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "aesthetic"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        layers = read_head(load_weights("head", self.head), self.head)
        self._images = clip_images(self.model, self.batch, self.setting)
        inputs, embedding = layers[0][0].shape[1], self._images.network.config.projection_dim
        if inputs != embedding:
            raise RewardError(
                f"head={self.head!r} takes {inputs} numbers, model={self.model!r} gives {embedding}; set "
                "option `model` to the CLIP that the head was trained on"
            )
        self._layers = [(weight.to(self.setting.device), bias.to(self.setting.device)) for weight, bias in layers]

    def __call__(self, inputs: RewardInputs) -> Tensor:
        x = F.normalize(inputs.of_student(self._images.features), dim=1)
        for weight, bias in self._layers:
            x = F.linear(x, weight.to(x), bias.to(x))
        return x.squeeze(1)


def read_head(tensors: dict[str, Tensor], where: str) -> Layers:
    """Return the head's linear layers, in the order of the numbers in their names; the last one has one output.

    tensors: a state dict. where: the file's path, for messages. Raises `RewardError` if the layers do not fit together.
    """
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_numbers)
    try:
        layers = [tuple(tensors[f"{name}.{kind}".lstrip(".")].float() for kind in ("weight", "bias")) for name in names]
        fit = all(w.ndim == 2 and b.shape == w.shape[:1] for w, b in layers)
        fit = fit and all(a.shape[0] == b.shape[1] for (a, _), (b, _) in pairwise(layers)) and len(layers[-1][1]) == 1
    except (KeyError, IndexError):
        fit = False
    if not fit:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise RewardError(
            f"head={where!r} holds {str(shapes)[:300]}; expected weight [out, in] and bias [out] of "
            "linear layers that follow each other and end in one number"
        )
    return [(weight, bias) for weight, bias in layers]


def _numbers(name: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", name)]
