"""Tokenisers, text encoders and VAE of a diffusers folder, each loaded when it is first used.

What is wrong with one is said before: its class, its files, weights that are not those of its config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from redif_ray.models.folder import INDEX, load_network, weightless, without_weights
from redif_ray.models.protocol import ModelError

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}  # whose classes an index may name
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # as the libraries name them


class Parts:
    """The parts `names` of a pipeline, of the classes that its index says; an `optional` one may be absent.

    Networks are of `dtype`, but a VAE is float32. Raises ModelError for a part that could not be loaded.
    """

    def __init__(
        self,
        folder: Path,
        index: Mapping[str, Any],
        dtype: torch.dtype,
        names: Sequence[str],
        optional: Sequence[str] = (),
    ) -> None:
        found = {name: index.get(name) or (None, None) for name in (*names, *optional)}
        if absent := [name for name in names if found[name][1] is None]:
            raise ModelError(f"{folder} has no {', '.join(absent)}; expected the whole pipeline")
        self.folder, self.dtype, self.empty = folder, dtype, weightless()
        self.kinds = {name: _kind(folder, name, *entry) if entry[1] else None for name, entry in found.items()}
        self.loaded: dict[str, Any] = {}
        self.configs = {name: self._network(name, read=False).config for name in self.kinds if self._is_network(name)}
        for name, kind in self.kinds.items():
            if name not in self.configs and kind is not None:
                _check_tokenizer(kind, folder / name)

    def get(self, name: str, device: str | torch.device) -> Any:
        """The part, on `device` if it is a network; None for an optional one that is absent."""
        if name not in self.loaded and self.kinds[name] is not None:
            self.loaded[name] = self._network(name).to(device) if name in self.configs else self._tokenizer(name)
        return self.loaded.get(name)

    def networks(self) -> dict[str, Module]:
        """Those that are loaded."""
        return {name: part for name, part in self.loaded.items() if name in self.configs}

    def files(self, names: Sequence[str], digest: Callable[[Path], str]) -> dict[str, str]:
        """`digest` of each file that decides what these parts do, by its path in the folder."""
        paths = [path for name in names if self.kinds[name] is not None for path in self._files(name)]
        return {str(path.relative_to(self.folder)): digest(path) for path in sorted(paths)}

    def _files(self, name: str) -> Iterator[Path]:
        folder = self.folder / name
        if name not in self.configs:
            yield from (path for path in folder.iterdir() if path.is_file())
            return
        yield folder / "config.json"
        for whole in (folder / weights for weights in WEIGHTS):
            if (shards := whole.with_name(f"{whole.name}.index.json")).is_file():
                yield from (folder / shard for shard in set(json.loads(shards.read_text())["weight_map"].values()))
            if whole.is_file():
                yield whole

    def _is_network(self, name: str) -> bool:
        kind = self.kinds[name]
        return kind is not None and issubclass(kind, ModelMixin | PreTrainedModel)

    def _network(self, name: str, *, read: bool = True) -> Any:
        dtype = torch.float32 if name == "vae" else self.dtype
        with without_weights() if self.empty else nullcontext():
            return load_network(self.kinds[name], self.folder, name, dtype, read=read)

    def _tokenizer(self, name: str) -> Any:
        kind: Any = self.kinds[name]
        path = self.folder / name
        try:
            return kind.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path} cannot be loaded as a {kind.__name__}: {error}; copy the folder once more"
            ) from error


def _kind(folder: Path, name: str, library: Any, kind: Any) -> Any:
    found: Any = getattr(LIBRARIES.get(str(library)), str(kind), None)
    if not isinstance(found, type) or not issubclass(found, ModelMixin | PreTrainedModel | PreTrainedTokenizerBase):
        raise ModelError(
            f"{folder / INDEX}: {name} is [{library}, {kind}]; expected a network or tokeniser of "
            "diffusers or transformers"
        )
    return found


def _check_tokenizer(kind: Any, folder: Path) -> None:
    """That one of the files which hold its words is there."""
    names = sorted(set(kind.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in names):
        raise ModelError(
            f"{folder} cannot be loaded as a {kind.__name__}: it has none of {', '.join(names)}; "
            "copy the folder once more"
        )
