"""A grid of samples, by which a person sees how far the training of a teacher is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.files import atomic_file

STEPS, CLASSES, EACH = 20, 8, 4  # sampling steps; classes in the grid, and images of each


@torch.no_grad()
def write_samples(
    path: Path, network: Any, weights: dict[str, torch.Tensor], scheduler: Any, classes: int, seed: int
) -> None:
    """Draw images with `weights` in place of the network's, from the same noises every time, as one PNG.

    classes: number of classes, of which the first ones are drawn, a row for each.
    """
    rows = min(max(1, classes), CLASSES)
    labels = torch.arange(rows).repeat_interleave(EACH)
    shape = (len(labels), network.config.in_channels, network.config.sample_size, network.config.sample_size)
    drawn = noise.normal(int(np.prod(shape)), Stream.CALIBRATION, seed=seed)
    device = next(iter(weights.values())).device
    x, labels = torch.from_numpy(drawn).reshape(shape).to(device), labels.to(device)
    solver: Any = DDIMScheduler.from_config(scheduler.config)
    solver.set_timesteps(STEPS)
    for t in solver.timesteps:
        inputs = (x, t.expand(len(labels)).to(device))
        output = torch.func.functional_call(network, weights, inputs, {"class_labels": labels}).sample
        x = solver.step(output, t, x).prev_sample
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    _, channels, height, width = pixels.shape
    tiled = pixels.reshape(rows, EACH, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = tiled.reshape(rows * height, EACH * width, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        Image.fromarray(picture[..., 0] if channels == 1 else picture).save(partial, "PNG")
