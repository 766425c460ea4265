"""Networks that work on pixels, and the UNet2DModel (Ho et al., arXiv 2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import UNet2DModel
from torch import Tensor

from redif_ray.models.folder import load_network, load_scheduler, read_index, variance_preserving
from redif_ray.models.latents import both_edges
from redif_ray.models.protocol import DiffusionModel, Encoded, ModelError
from redif_ray.types import Condition


class PixelModel(DiffusionModel):
    """A diffusion model whose latents are images in [-1, 1] and whose only condition is a class label."""

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", or None if the network has none."""
        return None

    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        """Return {"class_labels": int64 [B]}, or {} for an unconditional network. A condition None means "no class"."""
        if self.num_classes is None:
            wrong = [c for c in conditions if c is not None]
            if wrong:
                raise ModelError(f"condition {wrong[0]!r}: the network is unconditional; expected None")
            return {}
        return {"class_labels": torch.tensor([self._label(c) for c in conditions], device=self.device)}

    def null_conditions(self, batch: int) -> Encoded:
        if self.num_classes is None:
            raise ModelError("guidance of an unconditional network: there is nothing to guide by; expected guidance=1")
        return self.encode([None] * batch)

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        return self.call(x, timestep if timestep.requires_grad else timestep.to(torch.int64), encoded)

    def call(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        """Call the network with x and `timestep` [B], as the network takes them; the result has the shape of x."""
        output = self.call_network(x, timestep, **encoded).sample
        return output[:, : x.shape[1]]  # further channels, if any, are a learned variance

    def decode(self, latents: Tensor) -> Tensor:
        return (latents / 2 + 0.5).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        if type(self).decode is not PixelModel.decode:  # a family whose latents are other numbers says so itself
            return super().encode_images(images)
        return 2 * images - 1

    def _label(self, condition: Condition) -> int:
        if condition is None:
            if self.null_label is None:
                raise ModelError(
                    f"{type(self.network).__name__} has no label that means no class, but guidance needs one; "
                    "expected guidance=1 and a class for every image"
                )
            return self.null_label
        if not isinstance(condition, int) or not 0 <= condition < (self.num_classes or 0):
            raise ModelError(f"condition {condition!r}: expected a class in 0..{(self.num_classes or 0) - 1}")
        return condition


class PixelUNet(PixelModel):
    """The UNet of DDPMPipeline or DDIMPipeline: unconditional, or conditional on a class without a "no class" label."""

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        return cls(**load_unet(folder, dtype), **variance_preserving(load_scheduler(folder)))


def load_unet(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load an UNet2DModel and return the fields of a PixelModel that follow from it. Raises ModelError."""
    network = load_network(UNet2DModel, folder, "unet", dtype)
    config = network.config
    if config.class_embed_type is not None or config.time_embedding_type == "fourier":
        raise ModelError(
            f"{folder / 'unet'}: class_embed_type={config.class_embed_type!r}, time_embedding_type="
            f"{config.time_embedding_type!r}; expected null and positional or learned"
        )
    size = config.sample_size
    if size is None:
        raise ModelError(f"{folder / 'unet'}: sample_size is null; expected the images' edge")
    return _fields(folder, network, "unet", both_edges(size, folder / "unet")) | {
        "num_classes": config.num_class_embeds
    }


def _fields(folder: Path, network: Any, component: str, size: tuple[int, ...]) -> dict[str, Any]:
    shape = (network.config.in_channels, *size)
    return {
        "network": network,
        "component": component,
        "latent_shape": shape,
        "image_shape": shape,
        "index": read_index(folder),
    }
