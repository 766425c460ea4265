"""Tokenisers, text encoders and VAE of a diffusers folder, each loaded when it is first used.

Wrong classes, missing files and weights that do not fit their config.json raise an error before any part is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
import transformers
from diffusers import ModelMixin
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from redif_ray.models.folder import INDEX, load_network, weightless, without_weights
from redif_ray.models.foreign import check_part, loading
from redif_ray.models.headers import weight_files
from redif_ray.models.protocol import ModelError

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}  # an index may name classes of these
MOST_TOKENS = 1_000_000  # of a caption
# A caption needs the tokeniser alone of a processor of text and images: the class with which the processor reads it.
TOKENISERS = {"PixtralProcessor": "PreTrainedTokenizerFast"}


class Change(Protocol):
    """A change of parts that a file makes: its path, its weight, the names of these parts."""

    @property
    def path(self) -> Path: ...

    @property
    def weight(self) -> float: ...

    @property
    def parts(self) -> frozenset[str]: ...

    def apply(self, name: str, part: Any) -> None:
        """Change the part `name` in place; do nothing if it is not one of `parts`."""
        ...


class Parts:
    """The frozen parts of a pipeline, each of the class that the index names.

    names: parts that must exist. optional: parts that may be absent. dtype: of the networks; a VAE is float32 in place
    of float16, in which some overflow.
    Raises ModelError for a part that could not be loaded.
    """

    def __init__(
        self,
        folder: Path,
        index: Mapping[str, Any],
        dtype: torch.dtype,
        names: Sequence[str],
        optional: Sequence[str] = (),
    ) -> None:
        kinds = part_kinds(folder, index, (*names, *optional))
        if absent := [name for name in names if kinds[name] is None]:
            raise ModelError(f"{folder} has no {', '.join(absent)}; expected the whole pipeline")
        self.folder, self.dtype, self.empty = folder, dtype, weightless()
        self.kinds = kinds
        self.loaded: dict[str, Any] = {}
        self.changes: list[Change] = []
        self.configs = {name: self._network(name, read=False).config for name in self.kinds if self._is_network(name)}
        for name, kind in self.kinds.items():
            if name not in self.configs and kind is not None:
                _check_tokenizer(kind, folder, name)

    def get(self, name: str, device: str | torch.device) -> Any:
        """Return the part `name`, on `device` if it is a network; None for an optional part that is absent."""
        if name not in self.loaded and self.kinds[name] is not None:
            part = self._network(name) if name in self.configs else self._tokenizer(name)
            for change in self.changes:
                change.apply(name, part)
            self.loaded[name] = _on(device, part, name) if name in self.configs else part
        return self.loaded.get(name)

    def change(self, change: Change) -> None:
        """Change parts, which must not be loaded yet, when they are loaded; `files` names the change's file too."""
        self.changes.append(change)

    @property
    def changed(self) -> frozenset[str]:
        """The names of the parts that are not what their files say."""
        return frozenset().union(*(change.parts for change in self.changes)) & self.kinds.keys()

    def networks(self) -> dict[str, Module]:
        """Return the networks that are loaded, by name."""
        return {name: part for name, part in self.loaded.items() if name in self.configs}

    def files(self, names: Sequence[str], digest: Callable[[Path], str]) -> dict[str, str]:
        """Return `digest` of each file that decides what the parts `names` do, by its path in the folder."""
        paths = [path for name in names if self.kinds[name] is not None for path in self._files(name)]
        own = {str(path.relative_to(self.folder)): digest(path) for path in sorted(paths)}
        made = [change for change in self.changes if change.parts & set(names)]
        return own | {f"change {i}": f"{change.weight:g} {digest(change.path)}" for i, change in enumerate(made)}

    def weight_files(self) -> list[Path]:
        """Return the files that hold weights: those of the networks, and those of changes."""
        own = [path for name in self.configs for path in weight_files(self.folder / name)]
        return [*own, *(change.path for change in self.changes)]

    def _files(self, name: str) -> Iterator[Path]:
        folder = self.folder / name
        if name not in self.configs:
            yield from (path for path in folder.iterdir() if path.is_file())
            return
        yield folder / "config.json"
        yield from weight_files(folder)

    def _is_network(self, name: str) -> bool:
        kind = self.kinds[name]
        return kind is not None and issubclass(kind, ModelMixin | PreTrainedModel)

    def _network(self, name: str, *, read: bool = True) -> Any:
        dtype = torch.float32 if name == "vae" and self.dtype == torch.float16 else self.dtype
        with without_weights() if self.empty and not weightless() else nullcontext():
            return load_network(self.kinds[name], self.folder, name, dtype, read=read)

    def _tokenizer(self, name: str) -> Any:
        kind: Any = self.kinds[name]
        path = self.folder / name
        with loading(path, kind.__name__):
            return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _on(device: str | torch.device, part: Module, name: str) -> Module:
    """Return a network on a device; a VAE as `channels_last` on a GPU."""
    return channels_last(part.to(device)) if name == "vae" and torch.device(device).type == "cuda" else part.to(device)


def channels_last(network: Module) -> Module:
    """Let the channels be the last axis in memory of a network in 16 bits, as a GPU's units for matrices read images.

    A network of videos, whose convolutions have three dimensions, stays as it is: one image is then a single frame.
    """
    weights = list(network.parameters())
    if any(weight.dim() > 4 or weight.dtype == torch.float32 for weight in weights):
        return network
    return network.to(memory_format=torch.channels_last)


def part_kinds(folder: Path, index: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the classes of the parts `names` of the pipeline in `folder`; None for an absent part. Raises ModelError.

    index: the pipeline's index, which names the classes.
    """
    entries = {name: _entry(folder, name, index.get(name)) for name in names}
    return {name: _kind(folder, name, *entry) if entry[1] else None for name, entry in entries.items()}


def _entry(folder: Path, name: str, entry: Any) -> tuple[Any, Any]:
    """Return the library and the class that the index gives for a part; None twice for an absent one."""
    if entry is None:
        return None, None
    if not isinstance(entry, list) or len(entry) != 2:
        raise ModelError(f"{folder / INDEX}: {name} is {entry!r}; expected [library, class]")
    return entry[0], entry[1]


def _kind(folder: Path, name: str, library: Any, kind: Any) -> Any:
    kind = TOKENISERS.get(str(kind), kind)
    actual: Any = getattr(LIBRARIES.get(str(library)), str(kind), None)
    if not isinstance(actual, type) or not issubclass(actual, ModelMixin | PreTrainedModel | PreTrainedTokenizerBase):
        raise ModelError(
            f"{folder / INDEX}: {name} is [{library}, {kind}]; expected a network or tokeniser of "
            "diffusers or transformers"
        )
    return actual


def _check_tokenizer(kind: Any, pipeline: Path, name: str) -> None:
    """Raise ModelError unless at least one vocabulary file exists, and every file may be read."""
    folder = pipeline / name
    names = sorted(set(kind.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in names):
        raise ModelError(
            f"{folder} cannot be loaded as a {kind.__name__}: it has none of {', '.join(names)}; "
            "copy the folder once more"
        )
    check_part(folder, pipeline)


def check_tokens(tokenizer: Any, encoder: Any, folder: Path) -> None:
    """Raise ModelError where a special token of a tokeniser is none of its text encoder's."""
    known = encoder.get_input_embeddings().num_embeddings
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number >= known:
            raise ModelError(
                f"{folder}: {name}_token is number {number}, and the text encoder knows {known} tokens; copy both from "
                "one model"
            )


def check_limit(tokenizer: Any, folder: Path) -> None:
    """Raise ModelError where a tokeniser does not say how many tokens its encoder takes; 1e30 stands for no number."""
    most = tokenizer.model_max_length
    if not isinstance(most, int | float) or not 2 <= most <= MOST_TOKENS:
        raise ModelError(
            f"{folder / 'tokenizer_config.json'} has no usable model_max_length, the most tokens of a caption; set it "
            "to max_position_embeddings in the text encoder's config.json, 77 for CLIP"
        )
