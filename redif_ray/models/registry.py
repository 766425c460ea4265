"""Find a model by folder, shipped name or hub id, and read it with the family that its pipeline class names.

A user's own family is a function (folder: Path, dtype: torch.dtype) -> DiffusionModel, whose networks have that
dtype. `teacher.family` names it for one run; a package names it for all runs with an entry point in the group
"redif_ray.models", whose name is the pipeline's `_class_name`. The first of these that exists
decides: `teacher.family`, an entry point, a family of this package.
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
from huggingface_hub import snapshot_download

from redif_ray.checkpoint import file_sha256, weights_sha256
from redif_ray.config import Teacher
from redif_ray.errors import in_words
from redif_ray.models.folder import component_folder, read_index, student_settings, without_weights
from redif_ray.models.foreign import KINDS, LICENCES, loading
from redif_ray.models.headers import weight_files
from redif_ray.models.locate import ModelError, local_folder, missing, single_file
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import SIZE_KEYS, DiffusionModel, OwnFamily, is_finite
from redif_ray.models.single_file import SingleFile
from redif_ray.user_code.errors import UserCodeError, failures_named
from redif_ray.user_code.importing import import_function, source_sha256
from redif_ray.user_code.state import state_kept

GROUP = "redif_ray.models"
FAMILIES = {  # imported on first use: some pipelines take seconds
    "DDPMPipeline": "redif_ray.models.pixel:PixelUNet",
    "DDIMPipeline": "redif_ray.models.pixel:PixelUNet",
    "DiTPipeline": "redif_ray.models.dit",
    "EDMPipeline": "redif_ray.models.edm:EDM",
    "StableDiffusionPipeline": "redif_ray.models.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "redif_ray.models.stable_diffusion:StableDiffusionXL",
    "StableDiffusion3Pipeline": "redif_ray.models.stable_diffusion_3:StableDiffusion3",
    "Lumina2Pipeline": "redif_ray.models.lumina_2:Lumina2",
    "ZImagePipeline": "redif_ray.models.z_image:ZImage",
    "FluxPipeline": "redif_ray.models.flux:Flux",
    "FluxKontextPipeline": "redif_ray.models.flux_kontext:FluxKontext",
    "ChromaPipeline": "redif_ray.models.chroma:Chroma",
    "QwenImagePipeline": "redif_ray.models.qwen_image:QwenImage",
    "Krea2Pipeline": "redif_ray.models.krea_2:Krea2",
    "SanaPipeline": "redif_ray.models.sana:Sana",
    "PixArtSigmaPipeline": "redif_ray.models.pixart:PixArtSigma",
    "PixArtAlphaPipeline": "redif_ray.models.pixart:PixArtAlpha",
    "Flux2KleinPipeline": "redif_ray.models.flux_2:Flux2Klein",
    "Flux2Pipeline": "redif_ray.models.flux_2:Flux2Dev",
}
REFUSED = {  # pipelines that people ask for: why each is no teacher, and what to take
    "SanaSprintPipeline": "its scheduler draws fresh noise in every step, so that its image is no function of the "
    "start latent, which a student learns; distil SANA, from which Sprint was made, with a SanaPipeline",
    "LDMTextToImagePipeline": "its text encoder is a class of that pipeline alone; take Stable Diffusion 1.5, its "
    "successor, with a StableDiffusionPipeline",
    "LDMPipeline": "its decoder is vector-quantized, which no family here reads; take a model of pixels, with a "
    "DDPMPipeline, or of classes, with a DiTPipeline",
    **dict.fromkeys(
        ("QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
        "it is guided by what it predicts for a picture without a caption, and pictures are not taken for that yet; "
        "take an editing model whose guidance is an input of the network, a FluxKontextPipeline",
    ),
}


def load_model(
    source: str | Path,
    *,
    family: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] | None = None,
) -> DiffusionModel:
    """Load the model at `source` (see `model_folder`) onto `device`, frozen and in eval mode. Raises ModelError.

    family: the user's loader, as in `teacher.family`; None: chosen by the pipeline's class. dtype: of the networks'
    weights and computation; a VAE is float32 in place of float16, in which some overflow. size: (height, width) of
    images in pixels; None: the size that an exported student was trained at, or else the network's config.json's.
    """
    folder = model_folder(source)
    with loading(folder):
        model = _as_trained(_load(folder, dtype, family), folder, size)
    return replace(model.to(device), dtype=dtype)


def load_teacher(
    teacher: Teacher, source: str | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionModel:
    """Load the configured teacher with its family, its size and its LoRA files; see `load_model`.

    source: a student of the teacher, whole, which is loaded in its place; None: the teacher.
    """
    model = load_model(
        source or teacher_folder(teacher), family=teacher.family, device=device, dtype=dtype, size=teacher.size
    )
    if source is None and teacher.lora:
        from redif_ray.models.adapters import merge_files  # peft and text-to-image pipelines take seconds to import

        merge_files(model, teacher.lora)
    return model


def teacher_outline(
    teacher: Teacher, source: str | None = None, *, dtype: torch.dtype = torch.float32, check: bool = False
) -> DiffusionModel:
    """Load the configured teacher without its weights, onto the device "meta", in a moment and in little memory.

    source, dtype: as in `load_teacher`. check: whether to check the weight files as far as their headers tell.
    Raises ModelError.
    """
    with without_weights(check=check):
        return load_teacher(teacher, source, device="meta", dtype=dtype)


def teacher_folder(teacher: Teacher) -> Path:
    """Return the folder of the configured teacher; see `model_folder`."""
    return model_folder(teacher.model, teacher.base)


def model_folder(source: str | Path, base: str | Path | None = None) -> Path:
    """Return the folder of a model; a hub id is downloaded, and a single file converted once. Raises ModelError.

    source: a local folder, the name of a shipped teacher, a hub id, which is org/name or org/name@revision, or a
    checkpoint in one .safetensors file. base: the model that gives what is not in such a file, likewise a folder or a
    hub id; None: the hub's model of the file's layout.
    """
    if (path := single_file(source)) is not None:
        return _converted(path, base)
    if base is not None:
        raise ModelError(f"--base {base}: {source} is whole without it; leave it out")
    return local_folder(source) or _downloaded(source)


def _converted(path: Path, base: str | Path | None) -> Path:
    file = SingleFile(path)
    named = base or file.usual_base()
    folder = _base_folder(path, named)
    name = read_index(folder)["_class_name"]
    with quiet():
        kind: Any = resolve_name(FAMILIES[name]) if name in FAMILIES else None
    if not hasattr(kind, "network_folder"):
        raise ModelError(f"{path}: single files of a {name} are not read; expected a text-to-image model's")
    parts = (*kind.names, *kind.optional)
    if lacking := file.lacking(folder, parts):
        if base is None:
            raise ModelError(
                f"{path} holds no {', '.join(lacking)}; set teacher.base (--base) to the diffusers folder or hub id of "
                "the model that it was made from"
            )
        folder = local_folder(named) or _downloaded(named)
    return file.converted(folder, kind.network_folder, parts)


def _base_folder(path: Path, base: str | Path) -> Path:
    """Return the folder of the base model of the file `path`; that of a hub id may have no weights."""
    try:
        return local_folder(base) or _downloaded(base, weights=False)
    except ModelError as error:
        raise ModelError(
            f"{path} needs the configuration and the tokenisers of its base model: {error}; set teacher.base "
            "(--base) to a diffusers folder of it"
        ) from error


def _downloaded(source: str | Path, *, weights: bool = True) -> Path:
    """Return the folder of a hub id in the hub's cache. weights: False leaves them there. Raises ModelError."""
    name, _, revision = str(source).partition("@")
    try:
        if not weights:
            kinds = [*(f"*{kind}" for kind in KINDS if kind != ".safetensors"), *LICENCES]
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=kinds))
        return Path(
            DiffusionPipeline.download(name, revision=revision or None, use_safetensors=True, trust_remote_code=False)
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the hub's client and diffusers raise all kinds, also over a broken cache
        raise ModelError(f"{missing(source)}; the hub says: {in_words(error)}") from error


def pinned(source: str) -> str:
    """Return a hub id with the commit that it means now, so that all processes read the same one.

    Anything else is returned unchanged. Raises ModelError.
    """
    if single_file(source) is not None or local_folder(source) is not None:
        return source
    folder = _downloaded(source)
    return _with_commit(source, folder)


def pinned_base(teacher: Teacher) -> str | None:
    """Return `teacher.base`, or what stands for null, as `pinned` does, but without weights that may not be needed.

    It is None for a teacher that is not in one file. Raises ModelError.
    """
    if (path := single_file(teacher.model)) is None:
        return None
    base = teacher.base or SingleFile(path).usual_base()
    if local_folder(base) is not None:
        return str(Path(base).resolve())
    return _with_commit(base, _base_folder(path, base))


def _with_commit(source: str, folder: Path) -> str:
    return f"{source.partition('@')[0]}@{folder.name}" if folder.parent.name == "snapshots" else source


def _load(folder: Path, dtype: torch.dtype, family: str | None) -> DiffusionModel:
    name = read_index(folder)["_class_name"]
    if (target := family or _installed(name)) is not None:
        return _own(folder, dtype, target, f"teacher.family={family}" if family else f"entry point {name} = {target}")
    if name in FAMILIES:
        with quiet():  # transformers logs each image processor that is not installed
            loader = resolve_name(FAMILIES[name]).load
        return loader(folder, dtype)
    if name in REFUSED:
        raise ModelError(f"{folder} is a {name}, which is no teacher: {REFUSED[name]}")
    known = ", ".join(sorted({*FAMILIES, *(point.name for point in entry_points(group=GROUP))}))
    raise ModelError(
        f"{folder} is a {name}; expected one of {known}; or code of your own that loads it: "
        f"teacher.family=path/to/file.py:load, or a package with entry point {name} in {GROUP}"
    )


def _as_trained(model: DiffusionModel, folder: Path, size: tuple[int, int] | None) -> DiffusionModel:
    """Return the model at `size`, with the clipping and the size of an exported student."""
    settings = student_settings(folder) or {}
    if "clip_sample_range" in settings:  # an Euler scheduler, which the export has, knows no clipping
        model = replace(model, clip=settings["clip_sample_range"])
    if size is None and "height" in settings:
        size = settings["height"], settings["width"]
    if size is not None:
        return model.at_size(*size)
    if len(model.image_shape) == 1:
        raise ModelError(f"{folder / model.component / 'config.json'} has no sample_size; set {SIZE_KEYS}")
    return model


def _installed(name: str) -> str | None:
    """Return the `package.module:load` that an installed package registers for the pipeline class `name`, or None."""
    loaders = sorted({f"{point.module}:{point.attr}" for point in entry_points(group=GROUP, name=name)})
    if len(loaders) > 1:
        raise ModelError(
            f"two packages have an entry point {name} in {GROUP}: {', '.join(loaders)}; uninstall one, or "
            f"choose one with teacher.family={loaders[0]}"
        )
    return loaders[0] if loaders else None


def _own(folder: Path, dtype: torch.dtype, target: str, asked: str) -> DiffusionModel:
    """Load `folder` with the user's code `target`. asked: the setting that named it, for errors. Raises ModelError."""
    try:
        with state_kept():
            loader = import_function(target)
            with failures_named(f"failed on {folder}"):
                model = loader(folder, dtype)
    except UserCodeError as error:
        raise ModelError(f"{asked}: {error}") from error
    if not isinstance(model, DiffusionModel):
        kind = type(model).__name__
        raise ModelError(f"{asked} returned {kind}; expected a DiffusionModel of redif_ray.models.protocol")
    return replace(model, family=OwnFamily(Path(target).name, source_sha256(loader, type(model))))


def replaced(model: DiffusionModel) -> str | None:
    """Return a sentence saying that the user's code replaces a family of this package; None if it does not."""
    name = model.index.get("_class_name")
    if model.family is None or name not in FAMILIES:
        return None
    return f"{model.family.name} loads the {name} in place of redif-ray's own {FAMILIES[name]}"


def fingerprint(model: DiffusionModel, digest: Callable[[Path], str] = file_sha256) -> str:
    """Return the sha256 of all that decides an image: the network's weights, the files of the other parts,
    architecture, noise process, clipping, the user's code, a size of the user's. digest: sha256 of a file.
    """
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    settings: list[Any] = [type(model.network).__name__, config, model.prediction_type, model.clip]
    if parts := model.parts_sha256(digest):
        settings.append(parts)
    if model.family is not None:
        settings.append(model.family.sha256)
    if model.size is not None:
        settings.append({"size": model.size})
    text = torch.tensor(list(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)
    process = {f"process/{k}": torch.as_tensor(v) for k, v in vars(model.process).items()}
    check_finite(model)
    return weights_sha256(model.network.state_dict() | process | {"settings": text})


def weights_of(model: DiffusionModel, folder: Path) -> list[Path]:
    """Return the files that hold the weights of the model in `folder`, as far as this package reads them itself."""
    own = weight_files(component_folder(folder, model.component))
    return [*own, *model.part_weights()]


def check_finite(model: DiffusionModel, whose: str = "the teacher") -> None:
    """Raise ModelError where a weight of the network is NaN or infinite, which would end in black images.

    whose: the model, for the error.
    """
    for name, value in model.network.state_dict().items():
        if value.is_floating_point() and not is_finite(value):
            raise ModelError(f"weight {name} of {whose} is not finite; copy its folder once more")
