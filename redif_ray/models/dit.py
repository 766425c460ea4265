"""DiT (Peebles & Xie, arXiv 2212.09748): a transformer conditional on a class, on pixels or on the latents of a VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiTTransformer2DModel
from torch.nn import Module

from redif_ray.checkpoint import file_sha256
from redif_ray.models.components import Parts
from redif_ray.models.folder import load_network, load_scheduler, read_index, variance_preserving
from redif_ray.models.latents import check_scale, latent_shapes
from redif_ray.models.pixel import PixelModel
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.vae import VAE, LatentModel


def load(folder: Path, dtype: torch.dtype) -> DiffusionModel:
    """Load the DiTPipeline in `folder`, with a VAE or without one. Raises ModelError."""
    vae = read_index(folder).get(VAE)
    return (PixelDiT if vae is None or vae == [None, None] else LatentDiT).load(folder, dtype)


class PixelDiT(PixelModel):
    """The transformer of a DiTPipeline without a VAE: conditional on a class; one further label means "no class"."""

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        """Load the model in `folder`, its networks in `dtype`. Raises ModelError."""
        network = load_network(DiTTransformer2DModel, folder, "transformer", dtype)
        return cls(
            network=network,
            component="transformer",
            index=read_index(folder),
            num_classes=network.config.num_embeds_ada_norm,
            **cls.shapes(network, folder, dtype),
            **variance_preserving(load_scheduler(folder)),
        )

    @classmethod
    def shapes(cls, network: Any, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
        """Return `latent_shape` and `image_shape`, and other fields that follow from the folder. Raises ModelError."""
        shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
        return {"latent_shape": shape, "image_shape": shape}

    @property
    def null_label(self) -> int | None:
        return self.num_classes

    def blocks(self) -> list[Module]:
        """Return the blocks, and the first block's embedding, which the network calls again after the last block."""
        network: Any = self.network
        return [*super().blocks(), network.transformer_blocks[0].norm1.emb]


@dataclass(eq=False, kw_only=True)
class LatentDiT(LatentModel, PixelDiT):
    """The transformer of a DiTPipeline with its VAE, such as DiT-XL/2 on ImageNet."""

    shifts_latents = False

    @classmethod
    def shapes(cls, network: Any, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
        frozen = Parts(folder, read_index(folder), dtype, (VAE,))
        check_scale(frozen.configs[VAE], folder / VAE)
        return {"frozen": frozen, "dtype": dtype} | latent_shapes(network, frozen.configs[VAE], folder / "transformer")

    def parts_sha256(self, digest: Callable[[Path], str] = file_sha256) -> dict[str, str]:
        return self.frozen.files([VAE], digest)
