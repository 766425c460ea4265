"""The command `redif train-teacher`: train a small diffusion model on the user's images, saved as a diffusers folder.

The network is trained with label dropout so that it can be guided. One process, CPU or GPU.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from redif_ray.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    pack,
    save_checkpoint,
    unpack,
)
from redif_ray.data.images import ImageSet, load_images
from redif_ray.models.device import sampling_device
from redif_ray.teacher.batches import Batches, learning_rate
from redif_ray.teacher.config import TeacherConfig, TeacherError
from redif_ray.teacher.network import build_network, build_scheduler, save_folder
from redif_ray.teacher.samples import write_samples

REPORT_STEPS, REPORT_SECONDS = 50, 10  # between two reports, whichever is earlier
NOT_COMPARED = {"out", "threads", "device"}  # keys that a resumed training may change
SAMPLES = "samples"


def folders(config: TeacherConfig) -> tuple[Path, Path]:
    """Return the folder to write and the one of the unfinished training beside it."""
    out = Path(config.out)
    return out, out.with_name(f"{out.name}.training")


def check(config: TeacherConfig, *, resume: bool) -> Path | None:
    """Return the checkpoint to resume from, or None. Raises UserError for what is wrong without the data."""
    out, work = folders(config)
    last = find_checkpoint(work / "last")
    if out.exists():
        raise TeacherError(f"{out} exists; choose another `out` or move it away")
    if last is not None and not resume:
        raise TeacherError(f"{work} holds an unfinished training; pass --resume to continue it, or move it away")
    if last is None and resume:
        raise TeacherError(f"{work} holds no checkpoint to resume; leave --resume out to start the training")
    sampling_device(config.device, "device=")
    return last


def read_images(config: TeacherConfig) -> ImageSet:
    """Return the images to train on. Raises DataError."""
    return load_images(config.data, size=config.size, background=config.background, label=config.label)


def train(
    config: TeacherConfig,
    images: ImageSet | None = None,
    *,
    resume: bool = False,
    report: Callable[[dict[str, float]], object] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Train and save the teacher; return the diffusers folder, or None if it was stopped.

    images: what `read_images` returned; None: read them.
    report: function that gets step, loss, images_per_second and eta_seconds every 50 steps or 10 seconds, whichever is
    earlier, and at the end. stopped: function that tells after each step whether to stop, which writes a checkpoint.
    An interrupted training continues with `resume=True` and ends with the same weights (CPU, same thread count).
    Raises TeacherError, DataError and CheckpointError.
    """
    last = check(config, resume=resume)
    out, work = folders(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    images = read_images(config) if images is None else images
    network: Any = build_network(config, images).to(config.device).eval()  # eval: `Batches` drops labels, with a seed
    scheduler = build_scheduler(config)
    run = _Training(config, images, network)
    first = 0 if last is None else run.restore(work)
    batches = Batches(images, config, scheduler.alphas_cumprod)
    told = started = time.monotonic()
    loss_sum, summed = 0.0, 0
    for step in range(first, config.steps):
        loss_sum, summed = loss_sum + run.step(step, batches(step)), summed + 1
        now, last_step = time.monotonic(), step + 1 == config.steps
        if summed == REPORT_STEPS or now - told > REPORT_SECONDS or last_step:
            speed = (step + 1 - first) / (now - started)
            report(
                {
                    "step": step + 1,
                    "loss": loss_sum / summed,
                    "images_per_second": speed * config.batch,
                    "eta_seconds": (config.steps - step - 1) / speed,
                }
            )
            told, loss_sum, summed = now, 0.0, 0
        stop = stopped() and not last_step
        if (step + 1) % config.checkpoint_every == 0 or stop:
            run.save(work, step + 1)
            picture = work / SAMPLES / f"step-{step + 1:06d}.png"
            write_samples(picture, network, run.average, scheduler, len(images.classes), config.seed)
        if stop:
            return None
    network.load_state_dict(run.average, strict=False)
    save_folder(out, network, scheduler, images)
    shutil.rmtree(work, ignore_errors=True)
    return out


class _Training:
    """The state of a training: the network, the average of its weights and the optimiser."""

    def __init__(self, config: TeacherConfig, images: ImageSet, network: Any) -> None:
        self.config, self.network = config, network
        digest = hashlib.sha256(images.images.data)
        digest.update(b"" if images.labels is None else images.labels.tobytes())
        self.data = digest.hexdigest()
        self.names = [name for name, _ in network.named_parameters()]
        self.average = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )

    def step(self, step: int, batch: dict[str, torch.Tensor]) -> float:
        """Make one optimiser step and return its loss. Raises TeacherError for a loss that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        batch = {k: v.to(self.config.device, non_blocking=True) for k, v in batch.items()}
        output = self.network(batch["x"], batch["t"], class_labels=batch["labels"]).sample
        loss = (output - batch["target"]).square().mean()
        if not torch.isfinite(loss):
            raise TeacherError(f"the loss is {loss.item()} at step {step}; lower lr (now {self.config.lr})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return loss.item()

    def save(self, work: Path, step: int) -> None:
        save_checkpoint(
            work / "last",
            pack("network", dict(self.network.named_parameters()))
            | pack("ema", self.average)
            | pack("optimizer", optimizer_tensors(self.optimizer, self.names)),
            {"step": step, "data": self.data, "config": self.config.model_dump(exclude=NOT_COMPARED)},
        )

    def restore(self, work: Path) -> int:
        """Load the last checkpoint and return its step. Raises TeacherError for one of another training."""
        tensors, meta = load_checkpoint(work / "last")
        now = self.config.model_dump(exclude=NOT_COMPARED)
        then = {key: meta["config"].get(key, TeacherConfig.model_fields[key].get_default()) for key in now}
        changed = [f"{key}: {then[key]!r} then, {now[key]!r} now" for key in now if now[key] != then[key]]
        if changed:
            raise TeacherError(f"{work} was started with another configuration ({'; '.join(changed)}); move it away")
        if meta.get("data", self.data) != self.data:
            raise TeacherError(
                f"{work} was started with other images in {self.config.data}; restore them, or move it away"
            )
        self.network.load_state_dict(unpack("network", tensors))
        self.average = {k: v.to(self.config.device) for k, v in unpack("ema", tensors).items()}
        load_optimizer(self.optimizer, self.names, unpack("optimizer", tensors))
        return int(meta["step"])
