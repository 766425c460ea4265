"""Similarity of two images in the Perception Encoder, PE-Core (Bolya et al., arXiv 2504.13181), loaded with timm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.preparation import MODES, Preparation
from redif_ray.rewards.pretrained import ImageEncoder, find_model, imported
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.rewards.weight_file import check_finite

PIP = "pip install 'timm>=1.0.20'"
KIND = "vit_pe_core"


@dataclass(config=OPTIONS)
class Perception:
    """Cosine between the pooled, projected PE-Core embeddings of the student's and the teacher's image; in [-1, 1].

    model: a name that timm knows, a folder with timm's config.json and model.safetensors, or a hub id.
    batch: images per forward pass.
    """

    setting: Setting
    model: str = "vit_pe_core_large_patch14_336.fb"
    batch: Annotated[int, Field(gt=0)] = 64
    name: ClassVar[str] = "perception"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        self._encoder = _load(find_model(self.model), self.setting).at_most(self.batch)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        student, teacher = (of(self._encoder.features) for of in (inputs.of_student, inputs.of_teacher))
        return F.cosine_similarity(student, teacher, dim=1)


def _load(model: str, setting: Setting) -> ImageEncoder:
    timm, folder = imported("timm", PIP), Path(model)
    if folder.is_dir() and not (folder / "model.safetensors").is_file():  # timm would fall back to a .bin
        raise RewardError(f"model={model!r} has no model.safetensors; expected it beside timm's config.json")
    source = f"local-dir:{model}" if folder.is_dir() else f"hf-hub:{model}" if "/" in model else model
    try:
        with torch.random.fork_rng(devices=[]):  # the constructor draws random weights, which are then replaced
            network = timm.create_model(source, pretrained=True)
    except Exception as error:  # timm and the hub's client share no base class of errors
        raise RewardError(
            f"model={model!r}: timm cannot load it: {type(error).__name__}: {str(error)[:300]}; expected "
            f"a name of timm like {KIND}_base_patch16_224.fb, a folder, or a hub id"
        ) from error
    config = network.pretrained_cfg
    if not str(config.get("architecture")).startswith(KIND):
        raise RewardError(f"model={model!r} is a {config.get('architecture')}; expected {KIND}_...")
    check_finite(network.state_dict(), f"model={model!r}")
    preparation = pe_preparation(config)
    preparation.check(setting.image_shape)
    return ImageEncoder("perception", network.to(setting.device), preparation, network)


def pe_preparation(config: dict[str, Any]) -> Preparation:
    """Return the preparation that PE-Core was trained with: the whole image, of any shape, at the network's size.

    config: timm's pretrained_cfg. Raises `RewardError` for a resampling other than those of `MODES`.
    """
    _, height, width = config["input_size"]
    if config["interpolation"] not in MODES.values():
        raise RewardError(f"interpolation {config['interpolation']!r}; expected one of: {', '.join(MODES.values())}")
    return Preparation(
        resize=(height, width), mode=config["interpolation"], mean=tuple(config["mean"]), std=tuple(config["std"])
    )
