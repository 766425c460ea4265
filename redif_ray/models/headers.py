"""Comparison of a network with the headers of its weight files, which tell names and shapes without reading weights."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch.nn import Module

FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # file names of transformers and diffusers


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a network's folder: the whole file, or the shards that its index names."""
    for whole in (folder / name for name in FILES):
        if whole.is_file():
            return [whole]
        if (index := whole.with_name(f"{whole.name}.index.json")).is_file():
            return [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return []


def fits(network: Module, folder: Path, *, may_hold_more: bool) -> bool:
    """Tell whether the files of `folder` hold exactly the weights of `network`, by name and shape.

    Of weights that a network shares between names, one name is enough. may_hold_more: the files may hold further
    weights. False also for names of older versions, which only the library that wrote them can translate.
    """
    held: dict[str, tuple[int, ...]] = {}
    try:
        for path in weight_files(folder):
            with safe_open(path, framework="np") as file:
                held |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError):
        return False
    own, names = network.state_dict(keep_vars=True), defaultdict[int, list[str]](list)
    for name, value in own.items():
        names[id(value)].append(name)
    known = all(any(held.get(name) == tuple(own[name].shape) for name in same) for same in names.values())
    return known and (may_hold_more or held.keys() <= own.keys())
