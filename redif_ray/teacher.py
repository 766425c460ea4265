"""The command `redif train-teacher`: train a small diffusion model on the user's images, saved as a diffusers folder.

A DiT (Peebles & Xie, arXiv 2212.09748) with v-prediction (Salimans & Ho, arXiv 2202.00512) on the cosine schedule
(Nichol & Dhariwal, arXiv 2102.09672), trained with label dropout so that it can be guided. One process, CPU or GPU.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from pydantic import Field

from redif_ray.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    pack,
    save_checkpoint,
    unpack,
)
from redif_ray.config import Location, Strict
from redif_ray.data.images import ImageSet, load_images
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.files import atomic_folder


class TeacherError(UserError, RuntimeError):
    """A teacher cannot be trained as configured; the message says what to do."""


class TeacherConfig(Strict):
    """The configuration of `redif train-teacher`. The defaults are those of the shipped Fashion-MNIST teacher."""

    data: Location = Field(description="images: IDX folder, folder of class folders, .parquet or .npz")
    out: Location = Field(description="the diffusers folder to write; must not exist")
    size: int | None = Field(None, description="edge in pixels; None: the images' own", gt=0)
    patch: int = Field(4, gt=0, description="patch edge; must divide the image's")
    layers: int = Field(6, gt=0)
    heads: int = Field(3, gt=0)
    head_dim: int = Field(32, gt=0)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    steps: int = Field(6500, gt=0, description="optimiser steps")
    batch: int = Field(128, gt=0)
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(200, ge=0, description="steps of linear warm-up; a cosine to zero follows")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.9995, ge=0, lt=1)
    checkpoint_every: int = Field(500, gt=0)
    seed: int = Field(0, ge=0)
    device: str = "cpu"
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch's default")
    parameterization: Literal["v_prediction", "epsilon"] = "v_prediction"


def build_network(config: TeacherConfig, images: ImageSet) -> Any:
    """Build a `DiTTransformer2DModel` for these images, with weights drawn from the seed alone.

    Raises TeacherError if the images are not square or their edge is no multiple of the patch.
    """
    edge = images.images.shape[-1]
    if images.images.shape[-2] != edge or edge % config.patch:
        raise TeacherError(
            f"images are {images.images.shape[-2:]} pixels; expected squares whose edge is a multiple of "
            f"patch={config.patch}; set size, or another patch"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            num_layers=config.layers,
            in_channels=images.images.shape[1],
            out_channels=images.images.shape[1],
            sample_size=edge,
            patch_size=config.patch,
            num_embeds_ada_norm=max(1, len(images.classes)),
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
        zero_gates(network)
    return network


def zero_gates(network: Any) -> None:
    """Zero the gates (adaLN-zero): blocks start as the identity and the output as zero, unlike diffusers' default."""
    for block in network.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    for layer in (network.proj_out_1, network.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def learning_rate(step: int, config: TeacherConfig) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


class Batches:
    """The training examples of step i, a pure function of (seed, i), so that a resumed run gets the same ones."""

    def __init__(self, images: ImageSet, config: TeacherConfig, alphas_cumprod: torch.Tensor) -> None:
        self.images, self.config, self.alphas_cumprod = images, config, alphas_cumprod
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def indices(self, step: int) -> np.ndarray:
        count, batch = len(self.images), self.config.batch
        rows = np.empty(batch, np.int64)
        for i, position in enumerate(range(step * batch, (step + 1) * batch)):
            epoch, offset = divmod(position, count)
            if self.order[0] != epoch:
                self.order = (epoch, noise.permutation(count, Stream.TEACHER_DATA, seed=self.config.seed, round=epoch))
            rows[i] = self.order[1][offset]
        return rows

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Return the batch of a step, by name.

        x: noisy images x_t, [B, C, H, W]. t: timesteps, [B] int64. labels: [B] int64; the last index means "no label".
        target: [B, C, H, W].
        """
        seed, batch = self.config.seed, self.config.batch
        rows = self.indices(step)
        x0 = torch.from_numpy(self.images.images[rows]).float() / 127.5 - 1
        eps = noise.normal(x0.numel(), Stream.TEACHER_NOISE, seed=seed, round=step)
        noise_image = torch.from_numpy(eps).reshape(x0.shape)
        # One level in each of B equal slices of [0, T) has the same expectation as uniform draws, and less variance.
        shift = noise.uniform(1, Stream.TEACHER_LEVEL, seed=seed, round=step)
        levels = (np.arange(batch) + shift) / batch
        t = torch.from_numpy((levels * len(self.alphas_cumprod)).astype(np.int64))
        alpha = self.alphas_cumprod[t].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas_cumprod[t]).sqrt()[:, None, None, None]
        labels = torch.zeros(batch, dtype=torch.int64)
        if self.images.labels is not None:
            labels = torch.from_numpy(self.images.labels[rows])
        drop = noise.uniform(batch, Stream.TEACHER_DROPOUT, seed=seed, round=step) < self.config.label_dropout
        labels = torch.where(torch.from_numpy(drop), max(1, len(self.images.classes)), labels)
        target = alpha * noise_image - sigma * x0 if self.config.parameterization == "v_prediction" else noise_image
        return {"x": alpha * x0 + sigma * noise_image, "t": t, "labels": labels, "target": target}


def train(
    config: TeacherConfig, *, resume: bool = False, report: Callable[[dict[str, float]], object] = lambda _: None
) -> Path:
    """Train and save the teacher; returns the diffusers folder.

    report: function that gets step, loss, images_per_second and eta_seconds every 50 steps and at the end.
    An interrupted training continues with `resume=True` and ends with the same weights (CPU, same thread count).
    Raises TeacherError, DataError and CheckpointError.
    """
    out = Path(config.out)
    work = out.with_name(f"{out.name}.training")
    last = find_checkpoint(work / "last")
    if out.exists():
        raise TeacherError(f"{out} exists; choose another `out` or move it away")
    if last is not None and not resume:
        raise TeacherError(f"{work} holds an unfinished training; pass --resume to continue it, or move it away")
    if last is None and resume:
        raise TeacherError(f"{work} holds no checkpoint to resume; leave --resume out to start the training")
    if config.threads:
        torch.set_num_threads(config.threads)
    images = load_images(config.data, size=config.size)
    network: Any = build_network(config, images).to(config.device).eval()  # eval: `Batches` drops labels, with a seed
    scheduler: Any = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.parameterization,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    names = [name for name, _ in network.named_parameters()]
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    batches = Batches(images, config, scheduler.alphas_cumprod)

    first = 0
    if last is not None:
        tensors, meta = load_checkpoint(work / "last")
        now = config.model_dump(exclude={"out", "threads", "device"})
        changed = [
            f"{key}: {meta['config'].get(key)!r} then, {now[key]!r} now"
            for key in now
            if now[key] != meta["config"].get(key)
        ]
        if changed:
            raise TeacherError(f"{work} was started with another configuration ({'; '.join(changed)}); move it away")
        network.load_state_dict(unpack("network", tensors))
        average = {k: v.to(config.device) for k, v in unpack("ema", tensors).items()}
        load_optimizer(optimizer, names, unpack("optimizer", tensors))
        first = int(meta["step"])

    started, loss_sum, summed = time.monotonic(), 0.0, 0
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        batch = {k: v.to(config.device, non_blocking=True) for k, v in batches(step).items()}
        output = network(batch["x"], batch["t"], class_labels=batch["labels"]).sample
        loss = (output - batch["target"]).square().mean()
        if not torch.isfinite(loss):
            raise TeacherError(f"the loss is {loss.item()} at step {step}; lower lr (now {config.lr})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                average[name].lerp_(parameter, 1 - decay)
        loss_sum, summed = loss_sum + loss.item(), summed + 1
        if summed == 50 or step + 1 == config.steps:
            speed = (step + 1 - first) / (time.monotonic() - started)
            report(
                {
                    "step": step + 1,
                    "loss": loss_sum / summed,
                    "images_per_second": speed * config.batch,
                    "eta_seconds": (config.steps - step - 1) / speed,
                }
            )
            loss_sum, summed = 0.0, 0
        if (step + 1) % config.checkpoint_every == 0:
            save_checkpoint(
                work / "last",
                pack("network", dict(network.named_parameters()))
                | pack("ema", average)
                | pack("optimizer", optimizer_tensors(optimizer, names)),
                {"step": step + 1, "config": config.model_dump(exclude={"out", "threads", "device"})},
            )
    network.load_state_dict(average, strict=False)
    save_folder(out, network, scheduler, images)
    shutil.rmtree(work, ignore_errors=True)
    return out


def save_folder(out: Path, network: Any, scheduler: Any, images: ImageSet) -> None:
    """Write the network in the layout of diffusers' DiTPipeline, without a VAE, since the model works on pixels."""
    with atomic_folder(out) as partial:
        network.to("cpu").save_pretrained(partial / "transformer")
        scheduler.save_pretrained(partial / "scheduler")
        index = {
            "_class_name": "DiTPipeline",
            "scheduler": ["diffusers", type(scheduler).__name__],
            "transformer": ["diffusers", "DiTTransformer2DModel"],
            "vae": [None, None],
            "id2label": {str(i): name for i, name in enumerate(images.classes)},
        }
        (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
