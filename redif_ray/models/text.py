"""Networks that a caption tells what to draw, on the latents of a VAE. Each pipeline of diffusers encodes its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.checkpoint import weights_sha256
from redif_ray.data.encodings import EncodingStore
from redif_ray.data.targets import content_hash
from redif_ray.models.protocol import DiffusionModel, Encoded, ModelError
from redif_ray.models.quiet import quiet
from redif_ray.types import Condition

REMEMBERED = 256  # encoded captions


@dataclass(eq=False, kw_only=True)
class TextModel(DiffusionModel):
    """A condition is a caption; None stands for none, as guidance means it.

    pipeline: diffusers' pipeline, for its tokenisers, text encoders and VAE, frozen.
    A family implements `output` and `encode_prompt`.
    """

    takes_captions: ClassVar[bool] = True
    pipeline: Any
    known: dict[str | None, Encoded] = field(default_factory=dict, repr=False)  # newest last
    store: EncodingStore | None = None  # what other processes have encoded

    @property
    def parts(self) -> dict[str, Module]:
        found = {name: part for name, part in self.pipeline.components.items() if name != self.component}
        return {name: part for name, part in found.items() if isinstance(part, Module)}

    @abstractmethod
    def encode_prompt(self, caption: str | None) -> Encoded:
        """What the network is given for one caption, or for none: one row."""

    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        rows = [self._encoded(condition) for condition in conditions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def null_conditions(self, batch: int) -> Encoded:
        return self.encode([None] * batch)

    def decode(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        z = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return (self.pipeline.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def _encoded(self, condition: Condition) -> Encoded:
        """One caption at a time, so that its encoding does not depend on which others are in the batch."""
        if not isinstance(condition, str | None):
            raise ModelError(f"condition {condition!r}: expected a caption, or None for none")
        if condition not in self.known:
            if len(self.known) >= REMEMBERED:
                self.known.pop(next(iter(self.known)))
            self.known[condition] = self._stored(condition)
        return self.known[condition]

    def _stored(self, caption: str | None) -> Encoded:
        found = self.store.get(caption) if self.store else None
        if found is None:
            with quiet():
                found = {name: value.float() for name, value in self.encode_prompt(caption).items()}
            if self.store:
                self.store.put(caption, found)
        return {name: value.to(self.device) for name, value in found.items()}

    def keep_encodings(self, root: Path) -> None:
        """Share encodings with other processes through a folder of `root`, named by all that decides them."""
        encoders = {name: part for name, part in self.parts.items() if name != "vae"}
        weights = {f"{part}/{k}": v for part, network in encoders.items() for k, v in network.state_dict().items()}
        words = {n: p.get_vocab() for n, p in self.pipeline.components.items() if hasattr(p, "get_vocab")}
        rules = [type(self).__name__, {n: [v, self.pipeline.components[n].model_max_length] for n, v in words.items()}]
        self.store = EncodingStore(root, content_hash([weights_sha256(weights), rules]))


def latent_shapes(network: Any, vae: Any, where: Path) -> dict[str, Any]:
    """`latent_shape` and `image_shape` of a network that works on this VAE's latents. Raises ModelError."""
    size, channels = network.config.sample_size, network.config.in_channels
    if size is None or channels != vae.config.latent_channels:
        raise ModelError(
            f"{where}: sample_size={size}, in_channels={channels}; expected a size, and the "
            f"{vae.config.latent_channels} channels of the VAE's latents (inpainting and the like have more)"
        )
    height, width = (size, size) if isinstance(size, int) else size
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    return {
        "latent_shape": (channels, height, width),
        "image_shape": (vae.config.out_channels, scale * height, scale * width),
    }
