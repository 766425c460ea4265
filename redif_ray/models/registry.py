"""Find a model by folder, shipped name or hub id, and read it with the family that its pipeline class names.

A package adds a family with an entry point in the group "redif_ray.models": its name is the pipeline's `_class_name`,
its value a function (folder: Path, dtype: torch.dtype) -> DiffusionModel, whose networks are of that dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from diffusers import DiffusionPipeline

from redif_ray.checkpoint import file_sha256, weights_sha256
from redif_ray.models.folder import read_index
from redif_ray.models.places import ModelError, local_folder, missing
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.quiet import quiet

Loader = Callable[[Path, torch.dtype], DiffusionModel]
GROUP = "redif_ray.models"
FAMILIES = {  # imported when asked for: some pipelines take seconds
    "DDPMPipeline": "redif_ray.models.pixel:PixelUNet",
    "DDIMPipeline": "redif_ray.models.pixel:PixelUNet",
    "DiTPipeline": "redif_ray.models.pixel:PixelDiT",
    "EDMPipeline": "redif_ray.models.edm:EDM",
    "StableDiffusionPipeline": "redif_ray.models.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "redif_ray.models.stable_diffusion:StableDiffusionXL",
    "StableDiffusion3Pipeline": "redif_ray.models.stable_diffusion_3:StableDiffusion3",
}


def load_model(source: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusionModel:
    """The model at `source` (see `model_folder`) on `device`, frozen, in eval mode. Raises ModelError.

    dtype: of the weights of its networks, and what they compute in; a VAE stays float32, as some overflow in float16.
    """
    folder = model_folder(source)
    return replace(_loader(folder)(folder, dtype).to(device), dtype=dtype)


def model_folder(source: str | Path) -> Path:
    """A local folder, the name of a shipped teacher, or an "org/name" of the hub, fetched. Raises ModelError."""
    if (folder := local_folder(source)) is not None:
        return folder
    try:
        return Path(DiffusionPipeline.download(str(source), use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ModelError(f"{missing(source)}; the hub says: {error}") from error


def _loader(folder: Path) -> Loader:
    name = read_index(folder)["_class_name"]
    if name in FAMILIES:
        with quiet():  # transformers says at length which image processors it has not
            return resolve_name(FAMILIES[name]).load
    others = {point.name: point for point in entry_points(group=GROUP)}
    if name in others:
        return others[name].load()
    known = ", ".join(sorted([*FAMILIES, *others]))
    raise ModelError(f"{folder} is a {name}; expected one of {known}, or a package with entry point {name} in {GROUP}")


def fingerprint(model: DiffusionModel, digest: Callable[[Path], str] = file_sha256) -> str:
    """sha256 of all that decides an image: the network's weights, the files of the other parts, architecture, noise
    process, clipping. digest: sha256 of a file.
    """
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    settings: list[Any] = [type(model.network).__name__, config, model.prediction_type, model.clip]
    if parts := model.parts_sha256(digest):
        settings.append(parts)
    text = torch.tensor(list(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)
    process = {f"process/{k}": torch.as_tensor(v) for k, v in vars(model.process).items()}
    return weights_sha256(model.network.state_dict() | process | {"settings": text})
