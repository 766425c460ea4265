"""Comparison of a network with the headers of its weight files, which tell names and shapes without reading weights."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch.nn import Module

from redif_ray.models.foreign import shards
from redif_ray.models.locate import ModelError

FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # file names of transformers and diffusers
VARIANT = re.compile(r"(?:diffusion_pytorch_)?model\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a network's folder: the whole file, or the shards that its index names.

    Raises ModelError for a folder of several variants.
    """
    variant = variant_of(folder)
    for name in FILES:
        whole, index = _names(name, variant)
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return shards(folder / index)
    return []


def variant_of(folder: Path) -> str | None:
    """Return the variant of a network's weights, `fp16` for `model.fp16.safetensors`; None where they have no variant.

    Raises ModelError for a folder that holds several variants and no weights without one.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(each in names for name in FILES for each in _names(name, None)):
        return None
    found = {match[1] or match[2] for match in map(VARIANT.fullmatch, names) if match}
    if len(found) > 1:
        raise ModelError(f"{folder} holds the variants {', '.join(sorted(found))}; keep the files of one")
    return found.pop() if found else None


def without_variant(name: str, variant: str | None) -> str:
    """Return the name of a weight file, or of the index of its shards, without the variant."""
    known = {_names(each, variant)[i]: _names(each, None)[i] for each in FILES for i in range(2)}
    return known.get(name, name)


def check_held(folder: Path) -> None:
    """Raise ModelError for a network's folder without weights that can be read, or with weights that are integers."""
    if files := weight_files(folder):
        for path in files:
            _check_kinds(path)
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".safetensors"))
    raise ModelError(
        f"{folder} has neither {' nor '.join(FILES)}, whole or in shards with an index; it holds "
        f"{', '.join(others[:5]) or 'no weights'}; copy the folder again, or write other formats again by "
        "save_pretrained(folder, safe_serialization=True)"
    )


def _check_kinds(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            kind = file.get_slice(name).get_dtype()
            if name.endswith((".weight", ".bias")) and not kind.startswith(("F", "BF")):
                raise ModelError(f"{path}: {name} is {kind}; expected weights that are not quantized")


def _names(name: str, variant: str | None) -> tuple[str, str]:
    """Return the names of the whole file and of the index of its shards."""
    if variant is None:
        return name, f"{name}.index.json"
    return name.replace(".safetensors", f".{variant}.safetensors"), f"{name}.index.{variant}.json"


def fits(network: Module, folder: Path, *, may_hold_more: bool) -> bool:
    """Tell whether the files of `folder` hold exactly the weights of `network`, by name and shape.

    Of weights that a network shares between names, one name is enough. may_hold_more: the files may hold further
    weights. False also for names of older versions, which only the library that wrote them can translate.
    """
    held: dict[str, tuple[int, ...]] = {}
    own = network.state_dict(keep_vars=True)
    try:
        for path in weight_files(folder):
            with safe_open(path, framework="np") as file:
                held |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    names = defaultdict[int, list[str]](list)
    for name, value in own.items():
        names[id(value)].append(name)
    known = all(any(held.get(name) == tuple(own[name].shape) for name in same) for same in names.values())
    return known and (may_hold_more or held.keys() <= own.keys())
