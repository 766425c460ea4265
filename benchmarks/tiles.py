"""Images that the emoji teacher's VAE decodes in tiles, beside images that it decodes whole.

    python -m benchmarks.tiles [--edge 512]

The picture has discs and squares of eight sizes and colours. Tiles overlap by a quarter of their edge, diffusers'
default.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from redif_ray.models.registry import load_model
from redif_ray.models.vae import VAE, LatentModel

EACH = 4  # shapes along an edge


def picture(edge: int) -> Tensor:
    """Return a picture [1, 3, edge, edge] with values in [0, 1]."""
    image, cell = Image.new("RGB", (edge, edge), "white"), edge // EACH
    draw = ImageDraw.Draw(image)
    for i in range(EACH * EACH):
        x, y, size = cell * (i % EACH), cell * (i // EACH), cell * (9 + i % 8) // 20
        corners = [x + 4, y + 4, x + 4 + size, y + 4 + size]
        shape = draw.ellipse if i % 3 else draw.rectangle
        shape(corners, fill=(15 * i, 200 - 10 * i, (90 + 40 * i) % 256))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=512, help="of the picture, in pixels")
    edge = parser.parse_args().edge
    model = load_model("emoji")
    assert isinstance(model, LatentModel)
    vae = model.part(VAE)
    with torch.no_grad():
        z = vae.encode(2 * picture(edge) - 1).latent_dist.mode()
        whole = vae.decode(z).sample
        for tile in (edge // 4, edge // 2, 3 * edge // 4):
            vae.enable_tiling()
            vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // model.scale
            levels = 255 * (vae.decode(z).sample / 2 - whole / 2).abs()
            vae.disable_tiling()
            print(f"tiles of {tile} pixels: {levels.mean():.2f} levels of 255 in the mean, {levels.max():.0f} at most")


if __name__ == "__main__":
    main()
