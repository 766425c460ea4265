"""The weight files of a network: their names, their headers, which tell names and shapes, and whether all is finite."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import Module

from redif_ray.models.foreign import loading, shards
from redif_ray.models.protocol import ModelError, is_finite

OF_DIFFUSERS = "diffusion_pytorch_model.safetensors"
FILES = ("model.safetensors", OF_DIFFUSERS)  # file names of transformers and diffusers
VARIANT = re.compile(r"(?:diffusion_pytorch_)?model\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)")

REAL = {  # dtypes of weights that may be NaN or infinite, by their names in safetensors files
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
BLOCK = 2**24  # bytes of a file that are in memory at once


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a network's folder: the whole file, or the shards that its index names.

    Raises ModelError for a folder of several variants.
    """
    variant = variant_of(folder)
    for name in FILES:
        whole, index = (folder / each for each in _names(name, variant))
        if whole.is_file() and not (name == OF_DIFFUSERS and index.is_file()):  # diffusers looks for an index first
            return [whole]
        if index.is_file():
            return sorted(set(shards(index).values()))
    return []


def other_weights(folder: Path) -> set[Path]:
    """Return the safetensors files of a network's folder, and the indexes of shards, that are not read.

    They hold its weights once more, in another variant. Raises ModelError as `weight_files`.
    """
    read = weight_files(folder)
    if not read:
        return set()
    variant = variant_of(folder)
    again = {path for path in folder.glob("*.safetensors") if path not in read}
    found = {path: match[2] for path in folder.glob("*.json") if (match := VARIANT.fullmatch(path.name))}
    return again | {path for path, other in found.items() if other != variant}


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


def _index_of(folder: Path) -> dict[str, Path] | None:
    """Return the file of each weight as the index says whose shards are read; None where no shards are read."""
    read = weight_files(folder)
    indexes = (folder / _names(name, variant_of(folder))[1] for name in FILES)
    found = (shards(index) for index in indexes if index.is_file())
    return next((each for each in found if set(each.values()) == set(read)), None)


def check_held(folder: Path) -> None:
    """Raise ModelError for a network's folder without weights that can be read, or with weights that are integers."""
    if files := weight_files(folder):
        for path in files:
            check_kinds(path)
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".safetensors"))
    raise ModelError(
        f"{folder} has neither {' nor '.join(FILES)}, whole or in shards with an index; it holds "
        f"{', '.join(others[:5]) or 'no weights'}; copy the folder again, or write other formats again by "
        "save_pretrained(folder, safe_serialization=True)"
    )


def check_finite(path: Path) -> None:
    """Raise ModelError where a weight in the safetensors file `path` is NaN or infinite. The file is read whole.

    It is read in blocks, which takes an eighth of a second a GB; mapped files take ten times as long at first.
    """
    block = torch.empty(BLOCK, dtype=torch.uint8)
    with loading(path), path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        for name, about in json.loads(file.read(begin - 8)).items():
            dtype = REAL.get(about.get("dtype"))
            if dtype is None:  # integers, and the entry of metadata
                continue
            first, end = about["data_offsets"]
            file.seek(begin + first)
            for at in range(first, end, BLOCK):
                part = block[: min(BLOCK, end - at)]
                file.readinto(memoryview(part.numpy()))
                values = part.view(dtype)
                if not is_finite(values.float() if dtype.itemsize == 1 else values):
                    raise ModelError(f"{path}: weight {name} is NaN or infinite; copy the file from its source again")


def check_kinds(path: Path) -> None:
    """Raise ModelError where a weight in the safetensors file `path` is an integer, as quantized ones are."""
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
    own, index = network.state_dict(keep_vars=True), _index_of(folder)
    try:
        for path in weight_files(folder):
            with safe_open(path, framework="np") as file:
                names_here = set(file.keys())
                held |= {name: tuple(file.get_slice(name).get_shape()) for name in names_here}
            if index is not None and names_here != {name for name, place in index.items() if place == path}:
                return False
    except (OSError, SafetensorError):
        return False
    names = defaultdict[int, list[str]](list)
    for name, value in own.items():
        names[id(value)].append(name)
    known = all(any(held.get(name) == tuple(own[name].shape) for name in same) for same in names.values())
    return known and (may_hold_more or held.keys() <= own.keys())
