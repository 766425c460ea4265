"""The emoji teacher's autoencoder (Rombach et al., arXiv 2112.10752): 3 x 32 x 32 pixels, 4 x 16 x 16 latents.

python -m benchmarks.emoji.vae
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.emoji import data
from benchmarks.emoji.fit import Fit, fresh, rows_of, save_half, single_thread, train
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.grids import write_grid

OUT = data.OUT / "vae"
FIT = Fit(steps=1600, batch=32, lr=2e-3, ema=0.995)
KL_WEIGHT = 1e-3  # of the mean over latents, against the mean absolute error of pixels in [-1, 1]


def build() -> AutoencoderKL:
    """No attention: what an emoji's two halves have to do with each other is the denoising network's business."""
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=data.SIZE,
        mid_block_add_attention=False,
    )


def pixels(images: np.ndarray) -> Tensor:
    """uint8 [n, 3, 32, 32] to float in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def latents(vae: Any, images: np.ndarray) -> Tensor:
    """Means of the posterior, scaled as the denoising network sees them, [n, C, h, w]."""
    with torch.no_grad():
        parts = [vae.encode(pixels(images[i : i + 64])).latent_dist.mean for i in range(0, len(images), 64)]
    return torch.cat(parts) * vae.config.scaling_factor


def reconstructed(vae: Any, images: np.ndarray) -> np.ndarray:
    """Return images after the autoencoder, float [n, 3, 32, 32] in [0, 1]."""
    z = latents(vae, images) / vae.config.scaling_factor
    with torch.no_grad():
        parts = [vae.decode(z[i : i + 64]).sample for i in range(0, len(z), 64)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1).numpy()


def decode_milliseconds(vae: Any, count: int = 16, repeats: int = 5) -> float:
    """An image, on one thread, in batches of `count`."""
    edge = data.SIZE >> (len(vae.config.block_out_channels) - 1)
    z = torch.zeros(count, vae.config.latent_channels, edge, edge)
    with torch.no_grad():
        vae.decode(z)
        started = time.monotonic()
        for _ in range(repeats):
            vae.decode(z)
    return (time.monotonic() - started) / repeats / count * 1e3


def load(folder: Path = OUT) -> Any:
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


def fitted(vae: Any, images: np.ndarray, fit: Fit, work: Path) -> float:
    """Train an autoencoder on images, uint8 [n, 3, h, w]; its latents are not scaled yet. Returns the seconds."""

    def loss(step: int) -> Tensor:
        x = pixels(images[rows_of(step, len(images), fit)])
        posterior = vae.encode(x).latent_dist
        eps = noise.normal(posterior.mean.numel(), Stream.TEACHER_NOISE, seed=fit.seed, round=step)
        z = posterior.mean + posterior.std * torch.from_numpy(eps).reshape(posterior.mean.shape)
        return (vae.decode(z).sample - x).abs().mean() + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    seconds = train(vae, loss, fit, work)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    return seconds


def main() -> None:
    single_thread()
    emoji, tones = data.load(data.OUT / "emoji.parquet"), data.load(data.OUT / "tones.parquet")
    kept, others = emoji.split(held=False), emoji.split(held=True)
    images = np.concatenate([kept.images, tones.split(held=False).images])
    vae: Any = fresh(build, seed=0)
    seconds = fitted(vae, images, FIT, data.OUT / "vae.training")
    vae.register_to_config(scaling_factor=round(1 / latents(vae, kept.images).std().item(), 5))
    save_half(vae, OUT)

    vae = load()
    for name, some in (("trained on", kept), ("held out", others)):
        error = float(np.square(reconstructed(vae, some.images) - some.images / 255).mean())
        print(f"{name}: {-10 * np.log10(error):.2f} dB PSNR")
    shown = others.images[::4][:50]
    write_grid(data.OUT / "vae.png", np.concatenate([shown / 255, reconstructed(vae, shown)]))
    print(
        f"{sum(p.numel() for p in vae.parameters()):,} parameters, scaling_factor {vae.config.scaling_factor}, "
        f"{decode_milliseconds(vae):.2f} ms to decode an image, {seconds:.0f} s of training"
    )


if __name__ == "__main__":
    main()
