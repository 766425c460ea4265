"""Checkpoints: a folder of safetensors and one JSON manifest with checksums, written whole or not at all.

    <folder>/state.safetensors    tensors by name
    <folder>/manifest.json        {"format": 1, "meta": {...}, "sha256": {file: digest}}

A reader sees the old checkpoint or the new one, never a part. While a checkpoint is replaced, the old one is named
`.<name>.old` for an instant; if the process dies just then, `find_checkpoint` returns that one. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redif_ray.errors import UserError
from redif_ray.files import aside, atomic_folder

if TYPE_CHECKING:  # torch takes seconds to import, and processes that only name checkpoints need no tensor
    import torch

FORMAT = 1
STATE, MANIFEST = "state.safetensors", "manifest.json"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, truncated or altered; the message names the file and what to do."""


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):  # in large blocks, since each one waits for the interpreter's lock twice
            digest.update(block)
    return digest.hexdigest()


def weights_sha256(weights: Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """Return one checksum of named arrays, over sorted names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        if not isinstance(value, np.ndarray):
            import torch

            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # numpy has no bfloat16
        digest.update(f"{name}|{dtype}|{shape}|".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)  # not tobytes(), which copies
    return digest.hexdigest()


def save_checkpoint(folder: str | Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. An existing folder of that name is replaced only once the new one is complete.

    meta: JSON values. Raises `CheckpointError` if the disk fails; the existing folder is intact then.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    try:
        with atomic_folder(folder, replace=True) as partial:
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, partial / STATE)
            manifest = {"format": FORMAT, "meta": dict(meta), "sha256": {STATE: file_sha256(partial / STATE)}}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {folder}: {error}; the previous ones are intact") from error


def find_checkpoint(folder: str | Path) -> Path | None:
    """Return the folder of the checkpoint, even if its replacement was cut short; None if there is no checkpoint."""
    folder = Path(folder)
    return next((place for place in (folder, aside(folder)) if place.exists()), None)


class StoredTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a safetensors file, each read when it is asked for, so that no caller has to hold them all.

    prefix: only the names below `prefix/` count, and are given without it; None: all names.
    """

    def __init__(self, path: Path, prefix: str | None = None) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, framework="pt")
        self._start = "" if prefix is None else f"{prefix}/"
        self._names = [n.removeprefix(self._start) for n in self._file.keys() if n.startswith(self._start)]  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self._start + name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_checkpoint(folder: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors, meta) after checking the tensors against their checksum. Raises `CheckpointError`."""
    state, meta = check_checkpoint(folder)
    return dict(StoredTensors(state)), meta


def check_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return (path of the tensors, meta) after comparing their checksum. Raises `CheckpointError`."""
    folder = find_checkpoint(folder) or Path(folder)
    state, away = folder / STATE, f"to go on from an earlier checkpoint move {folder} away"
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected, found_format, meta = manifest["sha256"][STATE], manifest["format"], dict(manifest["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is corrupt ({error}); {away}") from error
    if found_format != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {found_format}; this version reads {FORMAT}")
    if not state.is_file() or file_sha256(state) != expected:
        raise CheckpointError(f"{state} is missing or does not match its checksum; {away}")
    return state, meta


def pack(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put a prefix before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def unpack(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the entries under `prefix`, without the prefix."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return AdamW's state by parameter name. names: of the parameters, in the optimiser's order."""
    import torch

    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned into the optimiser."""
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        entry = unpack(name, tensors)
        if entry:  # an optimiser of 8 bits counts its steps by an integer
            state[index] = {k: v if v.ndim or v.is_floating_point() else int(v) for k, v in entry.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
