"""Find a model by folder, shipped name or hub id, and read it with the family that its pipeline class names.

A family of the user's own is a function (folder: Path, dtype: torch.dtype) -> DiffusionModel, whose networks are of
that dtype. `teacher.family` names it for one run; a package names it for all runs with an entry point in the group
"redif_ray.models", whose name is the pipeline's `_class_name`. The first that there is decides: `teacher.family`, an
entry point, a family of this package.
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
from redif_ray.config import Teacher
from redif_ray.models.folder import read_index
from redif_ray.models.places import ModelError, local_folder, missing
from redif_ray.models.protocol import DiffusionModel, OwnFamily
from redif_ray.models.quiet import quiet
from redif_ray.user_code import UserCodeError, described, import_function, settings_kept, source_sha256

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


def load_model(
    source: str | Path, *, family: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionModel:
    """The model at `source` (see `model_folder`) on `device`, frozen, in eval mode. Raises ModelError.

    family: the user's own, as `teacher.family`. dtype: of the weights of its networks, and what they compute in; a VAE
    stays float32, as some overflow in float16.
    """
    return replace(_load(model_folder(source), dtype, family).to(device), dtype=dtype)


def load_teacher(teacher: Teacher, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusionModel:
    """`load_model` of the configured teacher, by its family."""
    return load_model(teacher.model, family=teacher.family, device=device, dtype=dtype)


def model_folder(source: str | Path) -> Path:
    """A local folder, the name of a shipped teacher, or an "org/name" of the hub, fetched. Raises ModelError."""
    if (folder := local_folder(source)) is not None:
        return folder
    try:
        return Path(DiffusionPipeline.download(str(source), use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ModelError(f"{missing(source)}; the hub says: {error}") from error


def _load(folder: Path, dtype: torch.dtype, family: str | None) -> DiffusionModel:
    name = read_index(folder)["_class_name"]
    if (target := family or _installed(name)) is not None:
        return _own(folder, dtype, target, f"teacher.family={family}" if family else f"entry point {name} = {target}")
    if name in FAMILIES:
        with quiet():  # transformers says at length which image processors it has not
            loader = resolve_name(FAMILIES[name]).load
        return loader(folder, dtype)
    known = ", ".join(sorted({*FAMILIES, *(point.name for point in entry_points(group=GROUP))}))
    raise ModelError(
        f"{folder} is a {name}; expected one of {known}; or code of your own that loads it: "
        f"teacher.family=path/to/file.py:load, or a package with entry point {name} in {GROUP}"
    )


def _installed(name: str) -> str | None:
    """What packages give as the family `name`, `package.module:load`; None where none does."""
    found = sorted({f"{point.module}:{point.attr}" for point in entry_points(group=GROUP, name=name)})
    if len(found) > 1:
        raise ModelError(
            f"two packages have an entry point {name} in {GROUP}: {', '.join(found)}; uninstall one, or "
            f"say which with teacher.family={found[0]}"
        )
    return found[0] if found else None


def _own(folder: Path, dtype: torch.dtype, target: str, asked: str) -> DiffusionModel:
    """What the user's `target` makes of `folder`. asked: how it was asked for. Raises ModelError."""
    try:
        with settings_kept():
            loader = import_function(target)
            model = loader(folder, dtype)
    except ModelError:
        raise
    except UserCodeError as error:
        raise ModelError(f"{asked}: {error}") from error
    except (Exception, SystemExit) as error:  # sys.exit would end a worker, or the run, without a word
        raise ModelError(f"{asked} failed on {folder}: {described(error)}") from error
    if not isinstance(model, DiffusionModel):
        found = type(model).__name__
        raise ModelError(f"{asked} returned {found}; expected a DiffusionModel of redif_ray.models.protocol")
    return replace(model, family=OwnFamily(Path(target).name, source_sha256(loader, type(model))))


def replaced(model: DiffusionModel) -> str | None:
    """A sentence that says so where the user's code loads what a family of this package would load."""
    name = model.index.get("_class_name")
    if model.family is None or name not in FAMILIES:
        return None
    return f"{model.family.name} loads the {name} in place of redif-ray's own {FAMILIES[name]}"


def fingerprint(model: DiffusionModel, digest: Callable[[Path], str] = file_sha256) -> str:
    """sha256 of all that decides an image: the network's weights, the files of the other parts, architecture, noise
    process, clipping, code of the user's own. digest: sha256 of a file.
    """
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    settings: list[Any] = [type(model.network).__name__, config, model.prediction_type, model.clip]
    if parts := model.parts_sha256(digest):
        settings.append(parts)
    if model.family is not None:
        settings.append(model.family.sha256)
    text = torch.tensor(list(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)
    process = {f"process/{k}": torch.as_tensor(v) for k, v in vars(model.process).items()}
    return weights_sha256(model.network.state_dict() | process | {"settings": text})
