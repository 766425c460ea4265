"""Sampler of the student in this file's folder. It needs only torch and diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor


class Student:
    """A denoising network of pixels, or of the latents of a VAE, and the levels it was trained for.

    shape: (C, H, W) of the noise of an image. device: where the networks compute, in float32.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        folder, self.device = Path(folder), device
        self.settings: dict[str, Any] = json.loads((folder / "redif.json").read_text())
        index = json.loads((folder / "model_index.json").read_text())
        part = "transformer" if "transformer" in index else "unet"
        self.network = getattr(diffusers, index[part][1]).from_pretrained(folder / part, use_safetensors=True)
        self.network.to(device).eval().requires_grad_(False)
        self.scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder / "scheduler")
        self.vae = None
        if (kind := (index.get("vae") or [None, None])[1]) is not None:
            vae = getattr(diffusers, kind).from_pretrained(folder / "vae", use_safetensors=True)
            self.vae = vae.to(device).eval().requires_grad_(False)
        channels, size = self.network.config.in_channels, self.network.config.sample_size
        self.shape = (channels, size, size) if isinstance(size, int) else (channels, *size)

    @torch.no_grad()
    def __call__(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] in [0, 1], on the CPU, from unit normal noise [B, *shape].

        labels: classes, int64 [B]; None: the student has no classes.
        The update is Euler's, rearranged without the difference of sigmas, which loses three digits in float32 at
        sigma = 2e4.
        """
        sigmas, edm = torch.tensor(self.settings["sigmas"]), hasattr(self.scheduler, "precondition_inputs")
        x, times, clip = noise.to(self.device) * sigmas[0], sigmas[:-1], self.settings["clip_sample_range"]
        labels = None if labels is None else labels.to(self.device)
        if not edm:
            self.scheduler.set_timesteps(timesteps=self.settings["timesteps"])
            times = self.scheduler.timesteps
        other = self.settings.get("network_timesteps")
        network_timesteps = times if other is None else torch.tensor(other)
        for t, at, sigma, following in zip(times, network_timesteps, sigmas, sigmas[1:], strict=False):
            if edm:
                scaled, timestep = self.scheduler.precondition_inputs(x, at), self.scheduler.precondition_noise(at)
                x0 = self.scheduler.precondition_outputs(x, self._output(scaled, timestep, labels), at)
            else:
                output = self._output(self.scheduler.scale_model_input(x, t), at.long(), labels)
                x0 = self.scheduler.step(output, t, x).pred_original_sample
            x0 = x0 if clip is None else x0.clamp(-clip, clip)
            x = x0 + (x - x0) * following / sigma
        if not edm:
            x = x / (sigmas[-1] ** 2 + 1) ** 0.5  # back from units of x / alpha
        if self.vae is not None:
            x = torch.cat([self.vae.decode(row / self.vae.config.scaling_factor).sample for row in x.split(1)])
        return (x / 2 + 0.5).clamp(0, 1).cpu()

    def _output(self, scaled: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's output for scaled images [B, C, H, W], guided as in training."""
        channels, guidance = scaled.shape[1], self.settings["guidance"]
        if labels is not None and guidance != 1:  # the second half of the batch has the label "no class"
            scaled = torch.cat([scaled, scaled])
            labels = torch.cat([labels, torch.full_like(labels, self.network.config.num_embeds_ada_norm)])
        named = {} if labels is None else {"class_labels": labels}
        times = timestep.to(scaled.device).expand(len(scaled))
        output: Tensor = self.network(scaled, times, **named).sample[:, :channels]
        if labels is None or guidance == 1:
            return output
        cond, uncond = output.chunk(2)
        return uncond + guidance * (cond - uncond)
