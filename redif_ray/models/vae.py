"""Networks on the latents of a VAE, which is loaded when a process first decodes or encodes images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.models.components import Parts
from redif_ray.models.latents import in_parts, vae_scale
from redif_ray.models.protocol import DiffusionModel

VAE = "vae"


@dataclass(eq=False, kw_only=True)
class LatentModel(DiffusionModel):
    """A model whose latents are those of a VAE, in a pipeline of a diffusers folder.

    frozen: the VAE and, where there are any, the networks and tokenisers that encode conditions.
    """

    shifts_latents: ClassVar[bool] = True  # whether the pipeline reads the VAE's shift_factor
    has_frames: ClassVar[bool] = False  # whether the VAE is one of videos, of [B, C, T, H, W] with T = 1 here
    frozen: Parts

    @property
    def parts(self) -> dict[str, Module]:
        return self.frozen.networks()

    def part_weights(self) -> list[Path]:
        return self.frozen.weight_files()

    @property
    def scale(self) -> int:
        """The pixels of an image along the edge of one latent."""
        return vae_scale(self.frozen.configs[VAE])

    def part(self, name: str) -> Any:
        """Return a part of the pipeline, loading it onto the network's device if it is not loaded yet."""
        return self.frozen.get(name, self.device)

    def to_vae(self, latents: Tensor) -> Tensor:
        """Return the VAE's own latents of the network's latents [B, *latent_shape]."""
        return latents / self.part(VAE).config.scaling_factor + self._shift

    def from_vae(self, z: Tensor) -> Tensor:
        """Return the network's latents [B, *latent_shape] of the VAE's own: the inverse of `to_vae`."""
        return (z - self._shift) * self.part(VAE).config.scaling_factor

    @property
    def _shift(self) -> float:
        return (self.part(VAE).config.get("shift_factor") or 0.0) if self.shifts_latents else 0.0

    def decode(self, latents: Tensor) -> Tensor:
        vae, z = self.part(VAE), self.to_vae(latents)
        z = self._with_frame(z).to(vae.dtype)
        made = in_parts(lambda part: vae.decode(part, return_dict=False)[0], z, self.image_shape)
        return (self._without_frame(made).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        if type(self).decode is not LatentModel.decode:  # a family whose latents are other numbers says so itself
            return super().encode_images(images)
        vae = self.part(VAE)

        def encoded(part: Tensor) -> Tensor:
            made = vae.encode(part, return_dict=False)[0]
            z: Tensor = made if isinstance(made, Tensor) else made.mode()  # latents, or their distribution
            return z

        made = in_parts(encoded, self._with_frame(2 * images - 1).to(vae.dtype), self.image_shape)
        return self.from_vae(self._without_frame(made).float())

    def _with_frame(self, rows: Tensor) -> Tensor:
        return rows.unsqueeze(2) if self.has_frames else rows

    def _without_frame(self, rows: Tensor) -> Tensor:
        return rows.squeeze(2) if self.has_frames else rows
