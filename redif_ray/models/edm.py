"""EDM: preconditioned pixel networks conditioned on sigma (Karras et al., arXiv 2206.00364, section 5).

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)

The folder has the layout of DDPMPipeline, with an EDMEulerScheduler for sigma_min, sigma_max and sigma_data, and the
index's `_class_name` is EDMPipeline. NVIDIA's own files are pickles, which are never loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from redif_ray.diffusion.levels import VarianceExploding, like
from redif_ray.models.folder import load_scheduler
from redif_ray.models.pixel import PixelUNet, load_unet
from redif_ray.models.protocol import Encoded, ModelError


@dataclass(eq=False, kw_only=True)
class EDM(PixelUNet):
    """An EDM network, x0_hat = D(x, sigma), conditional on a class or unconditional. sigma_data: std of the data."""

    sigma_data: float

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        scheduler = load_scheduler(folder)
        config = scheduler.config
        if not isinstance(scheduler, EDMEulerScheduler) or config.prediction_type != "epsilon":
            raise ModelError(
                f"{folder / 'scheduler'}: {type(scheduler).__name__} with prediction_type="
                f"{config.prediction_type!r}; expected an EDMEulerScheduler with epsilon"
            )
        process = VarianceExploding(config.sigma_min, config.sigma_max)
        return cls(
            **load_unet(folder, dtype),
            process=process,
            prediction_type="sample",
            clip=None,
            scheduler=scheduler,
            sigma_data=config.sigma_data,
        )

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        sigma, data = timestep, self.sigma_data
        norm = torch.sqrt(sigma**2 + data**2)
        c_skip, c_out, c_in, c_noise = data**2 / norm**2, sigma * data / norm, 1 / norm, torch.log(sigma) / 4
        raw = self.call(like(c_in, x) * x, c_noise.to(x.dtype), encoded).float()
        return like(c_skip, x) * x + like(c_out, x) * raw
