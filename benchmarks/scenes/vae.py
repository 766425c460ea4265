"""The scenes' autoencoder: 3 x 32 x 32 pixels, 8 x 8 x 8 latents.

    python -m benchmarks.scenes.vae

It is trained on pictures of every scene, without captions: what is held out is held out from the denoiser and the text
encoder, which decide what is drawn. Trained on the other scenes alone, it kept 77 % of the held-out ones right, and on
shapes in random colours 8 % of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import AutoencoderKL

from benchmarks.emoji.fit import Fit, fresh, save_half, single_thread
from benchmarks.emoji.vae import decode_milliseconds, fitted, latents, load, reconstructed
from benchmarks.scenes.checker import verdict
from benchmarks.scenes.pictures import OUT, captions, drawn, pictures
from benchmarks.scenes.scenes import SIZE, every_scene
from redif_ray.evaluation.grids import write_grid

FOLDER = OUT / "vae"
FIT = Fit(steps=2000, batch=32, lr=2e-3, ema=0.995)
COUNT, CHECKED, SEED = 20_000, 1000, 1  # pictures to train on, and others to check


def build() -> AutoencoderKL:
    """Return the autoencoder, without attention, since the denoising network has it."""
    return AutoencoderKL(
        block_out_channels=(24, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def main() -> None:
    single_thread()
    images = pictures(drawn(every_scene(), COUNT, SEED), SEED)
    vae: Any = fresh(build, seed=0)
    seconds = fitted(vae, images, FIT, OUT / "vae.training")
    vae.register_to_config(scaling_factor=round(1 / latents(vae, images).std().item(), 5))
    save_half(vae, FOLDER)

    vae = load(FOLDER)
    for name, held_out in (("trained", False), ("held out", True)):
        scenes = drawn(captions(held_out=held_out), CHECKED, SEED + 1)
        own = pictures(scenes, SEED + 1)
        again = reconstructed(vae, own)
        error = float(np.square(again - own / 255).mean())
        right = np.mean([verdict(image, scene)["whole"] for image, scene in zip(again, scenes, strict=True)])
        print(f"{name} compositions: {-10 * np.log10(error):.1f} dB PSNR, {right:.1%} right")
    write_grid(OUT / "vae.png", np.concatenate([own[:50] / 255, again[:50]]))
    print(
        f"{sum(p.numel() for p in vae.parameters()):,} parameters, scaling_factor {vae.config.scaling_factor}, "
        f"{decode_milliseconds(vae):.2f} ms to decode an image, {seconds:.0f} s of training"
    )


if __name__ == "__main__":
    main()
