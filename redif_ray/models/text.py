"""Networks that a caption tells what to draw, on the latents of a VAE. Each pipeline of diffusers encodes its own.

A process holds text encoders once it has a caption to encode, and the VAE once it decodes. Captions that another has
encoded are read from the store.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.checkpoint import file_sha256
from redif_ray.data.encodings import EncodingStore
from redif_ray.data.targets import content_hash
from redif_ray.models.folder import INDEX, without_weights
from redif_ray.models.parts import Parts
from redif_ray.models.protocol import DiffusionModel, Encoded, ModelError
from redif_ray.models.quiet import quiet
from redif_ray.types import Condition

REMEMBERED = 64 * 2**20  # bytes of encoded captions, on the device: 12 of Stable Diffusion 3, 280 of 1.5
VAE = "vae"
log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class TextModel(DiffusionModel):
    """A condition is a caption; None stands for none, as guidance means it.

    frozen: tokenisers, text encoders and VAE. A family implements `load`, `output`, `make_pipeline`, `encode_prompt`.
    """

    takes_captions: ClassVar[bool] = True
    pipeline_kind: ClassVar[Any]  # diffusers' class
    token_limits: ClassVar[Mapping[str, int]] = {}  # by tokeniser, where it is not what the tokeniser itself says
    frozen: Parts
    known: dict[str | None, Encoded] = field(default_factory=dict, repr=False)  # newest last
    store: EncodingStore | None = None  # what other processes have encoded

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        """See `registry.Loader`."""

    @abstractmethod
    def make_pipeline(self, **parts: Any) -> Any:
        """`pipeline_kind` of these tokenisers and text encoders, to encode captions with."""

    @abstractmethod
    def encode_prompt(self, caption: str | None) -> Encoded:
        """What the network is given for one caption, or for none: one row, by `pipeline`."""

    @property
    def parts(self) -> dict[str, Module]:
        return self.frozen.networks()

    def part(self, name: str) -> Any:
        """A tokeniser, text encoder or the VAE, which is loaded to the network's device where it is not there yet."""
        if self.store and name not in self.frozen.loaded and self.frozen.kinds[name] is not None:
            log.warning("%s is loaded", self.frozen.folder / name)
        return self.frozen.get(name, self.device)

    @cached_property
    def pipeline(self) -> Any:
        """Without a network and a VAE."""
        return self.make_pipeline(**{name: self.part(name) for name in self._encoders})

    @property
    def _encoders(self) -> list[str]:
        return [name for name in self.frozen.kinds if name != VAE]

    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        rows = [self._encoded(condition) for condition in conditions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def null_conditions(self, batch: int) -> Encoded:
        return self.encode([None] * batch)

    def check_guidance(self) -> None:
        """Every network of this kind can be told nothing."""

    def blank(self, batch: int) -> Encoded:
        empty = self
        if not self.frozen.empty:
            with without_weights():
                empty = type(self).load(self.frozen.folder, self.dtype)
        encoded = empty.encode([self.example] * batch)
        return {name: torch.zeros_like(value, device=self.device) for name, value in encoded.items()}

    def cut_short(self, captions: Sequence[str]) -> list[str]:
        """Those that no tokeniser takes whole."""
        left = list(captions)
        for name in self._encoders:
            part = self.part(name) if name not in self.frozen.configs else None
            if part is None or not left:
                continue
            limit = self.token_limits.get(name, part.model_max_length)
            with quiet():
                lengths = [len(ids) for ids in part(left, truncation=False).input_ids]
            left = [caption for caption, length in zip(left, lengths, strict=True) if length > limit]
        return left

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.part(VAE)
        vae.enable_slicing()
        z = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        return (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)

    def parts_sha256(self, digest: Callable[[Path], str] = file_sha256) -> dict[str, str]:
        return self.frozen.files(list(self.frozen.kinds), digest) | {INDEX: content_hash(self._options)}

    @property
    def _options(self) -> dict[str, Any]:
        """What the index says beside the parts' classes."""
        return {k: v for k, v in self.index.items() if not k.startswith("_") and not isinstance(v, list)}

    @torch.no_grad()
    def _encoded(self, condition: Condition) -> Encoded:
        """One caption at a time, so that its encoding does not depend on which others are in the batch."""
        if not isinstance(condition, str | None):
            raise ModelError(f"condition {condition!r}: expected a caption, or None for none")
        if condition not in self.known:
            found = self._stored(condition)
            room = REMEMBERED // sum(value.nbytes for value in found.values())
            while self.known and len(self.known) >= room:
                self.known.pop(next(iter(self.known)))
            self.known[condition] = found
        return self.known[condition]

    def _stored(self, caption: str | None) -> Encoded:
        found = self.store.get(caption) if self.store else None
        if found is None:
            with quiet():
                found = {name: value.float() for name, value in self.encode_prompt(caption).items()}
            if self.store:
                self.store.put(caption, found)
        return {name: value.to(self.device) for name, value in found.items()}

    def keep_encodings(self, root: Path, digest: Callable[[Path], str] = file_sha256) -> None:
        """Share encodings with other processes through a folder of `root`, named by all that decides them.

        digest: sha256 of a file, of which those of the text encoders are asked for.
        """
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        rules = [type(self).__name__, str(self.dtype), self.image_shape, config, self._options]
        self.store = EncodingStore(root, content_hash([self.frozen.files(self._encoders, digest), rules]))


def latent_shapes(network: Any, vae: Any, where: Path) -> dict[str, Any]:
    """`latent_shape` and `image_shape` of a network that works on the latents of a VAE with this config.

    Raises ModelError.
    """
    size, channels = network.config.sample_size, network.config.in_channels
    if size is None or channels != vae.latent_channels:
        raise ModelError(
            f"{where}: sample_size={size}, in_channels={channels}; expected a size, and the "
            f"{vae.latent_channels} channels of the VAE's latents (inpainting and the like have more)"
        )
    height, width = (size, size) if isinstance(size, int) else size
    scale = 2 ** (len(vae.block_out_channels) - 1)
    return {
        "latent_shape": (channels, height, width),
        "image_shape": (vae.out_channels, scale * height, scale * width),
    }
