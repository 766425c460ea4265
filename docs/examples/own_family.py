"""A family of models of your own: ScoreSdeVePipeline (Song et al., arXiv 2011.13456), whose network answers the score.

redif distill CONFIG teacher.model=FOLDER teacher.family=$PWD/docs/examples/own_family.py:load

Or a package names it for all runs, in its pyproject.toml:

    [project.entry-points."redif_ray.models"]
    ScoreSdeVePipeline = "own_family:load"
"""

from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from redif_ray.diffusion.levels import VarianceExploding, like
from redif_ray.models.folder import load_network, load_scheduler, read_index
from redif_ray.models.pixel import PixelModel
from redif_ray.models.protocol import Encoded


class ScoreSdeVe(PixelModel):
    """x = x0 + sigma eps with pixels in [0, 1]; the network is told sigma and answers -eps / sigma."""

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        return -like(timestep, x) * self.call(x, timestep.float(), encoded).float()

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:  # only for methods that train on the teacher's images
        return images


def load(folder: Path, dtype: torch.dtype) -> ScoreSdeVe:
    network, scheduler = load_network(UNet2DModel, folder, "unet", dtype), load_scheduler(folder)
    shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
    return ScoreSdeVe(
        network=network,
        component="unet",
        index=read_index(folder),
        scheduler=scheduler,
        num_classes=None,
        process=VarianceExploding(scheduler.config.sigma_min, scheduler.config.sigma_max),
        prediction_type="epsilon",
        clip=None,
        latent_shape=shape,
        image_shape=shape,
    )
