"""Latents of a VAE: their shapes, and calls of the VAE on as many images as a device is busy with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redif_ray.models.protocol import SIZE_KEYS, ModelError

AT_ONCE = 2**20  # pixels in a call of the VAE: one image of 1024 x 1024


def in_parts(call: Callable[[Tensor], Tensor], rows: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Return `call` of a VAE for all rows, in calls on as many images as `AT_ONCE` pixels hold, or on one.

    So a small image does not leave a device idle, and the memory of a call does not grow with the number of images.
    """
    count = max(1, AT_ONCE // math.prod(image_shape[1:]))
    return torch.cat([call(part) for part in rows.split(count)])


def latent_shapes(network: Any, vae: Any, where: Path, patch: int = 1) -> dict[str, Any]:
    """Return `latent_shape` and `image_shape` of a network on the latents of a VAE with the config `vae`.

    They are (C,) alone where the network's config names no size. where: the network's folder, for errors. patch: edge
    of the square of latents whose channels are one token's; 1: the network takes latents as they are.
    Raises ModelError.
    """
    size, channels = network.config.get("sample_size"), network.config.in_channels // patch**2
    if channels != vae.latent_channels:
        raise ModelError(
            f"{where}: in_channels={channels}; expected the {vae.latent_channels} channels of the VAE's latents (an "
            "inpainting network has more)"
        )
    edges = () if size is None else both_edges(size, where)
    scale = vae_scale(vae)
    return {
        "latent_shape": (channels, *edges),
        "image_shape": (vae.in_channels, *(scale * edge for edge in edges)),
    }


def both_edges(size: Any, where: Path) -> tuple[int, int]:
    """Return height and width of a network's `sample_size`, one number or two. where: its folder, for the error."""
    edges = [size, size] if isinstance(size, int) else size
    if not (isinstance(edges, list | tuple) and len(edges) == 2 and all(isinstance(n, int) and n > 0 for n in edges)):
        raise ModelError(f"{where / 'config.json'}: sample_size={size!r}; expected the images' edge, or both edges")
    return edges[0], edges[1]


def vae_scale(vae: Any) -> int:
    """Return the pixels of an image along the edge of one latent of a VAE with the config `vae`."""
    blocks = vae.get("block_out_channels") or vae.encoder_block_out_channels  # the latter in an AutoencoderDC
    return int(2 ** (len(blocks) - 1))


def check_axes(axes_lens: Sequence[int], height: int, width: int, token: int) -> None:
    """Raise ModelError for an image of more rows or columns of tokens than a network with rotary tables has.

    axes_lens: lengths of the tables for captions, rows and columns. token: edge of a token in pixels.
    """
    rows, columns = (token * length for length in axes_lens[1:])
    if height > rows or width > columns:
        raise ModelError(
            f"images of {height} x {width} pixels: the network's positions (axes_lens) reach to {rows} x {columns} "
            f"pixels; set {SIZE_KEYS} to at most as many"
        )


def check_scale(vae: Any, where: Path) -> None:
    """Raise ModelError unless the numbers by which a VAE's latents are scaled and shifted are numbers, or absent."""
    for name in ("scaling_factor", "shift_factor"):
        value = vae.get(name)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ModelError(f"{where / 'config.json'}: {name}={value!r}; expected a number; copy the folder once more")
    if vae.get("scaling_factor") == 0:
        raise ModelError(f"{where / 'config.json'}: scaling_factor=0; expected another number")
