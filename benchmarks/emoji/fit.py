"""The training loop of these networks: AdamW, warm-up and cosine, averaged weights, resumed where it was cut short."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from redif_ray.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    pack,
    save_checkpoint,
    unpack,
)
from redif_ray.classifiers.training import learning_rate
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream


@dataclass(frozen=True, slots=True)
class Fit:
    """The length and the rate of a training. `seed` is that of the data's order; a network takes its own."""

    steps: int
    batch: int
    lr: float
    ema: float = 0.999
    weight_decay: float = 0.0
    checkpoint_every: int = 200
    seed: int = 0


@lru_cache(maxsize=2)
def epoch_order(count: int, epoch: int, seed: int) -> np.ndarray:
    return noise.permutation(count, Stream.TEACHER_DATA, seed=seed, round=epoch)


def rows_of(step: int, count: int, fit: Fit) -> np.ndarray:
    """Return which of `count` examples step i sees, int64 [batch], each of them once an epoch."""
    positions = range(step * fit.batch, (step + 1) * fit.batch)
    return np.array([epoch_order(count, p // count, fit.seed)[p % count] for p in positions])


def train(network: Module, loss: Callable[[int], Tensor], fit: Fit, work: Path) -> float:
    """Minimise loss(step), a function of the step alone; the network ends with its averaged weights.

    work: the folder of the checkpoint, from which a run that was cut short goes on. Returns seconds, over all parts.
    """
    names = [name for name, _ in network.named_parameters()]
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=fit.lr, betas=(0.9, 0.99), weight_decay=fit.weight_decay)
    first, before = 0, 0.0
    if find_checkpoint(work):
        tensors, meta = load_checkpoint(work)
        if meta["fit"] != asdict(fit):
            raise SystemExit(f"{work} was started with {meta['fit']}; move it away to start again")
        network.load_state_dict(unpack("network", tensors), strict=False)
        average = unpack("ema", tensors)
        load_optimizer(optimizer, names, unpack("optimizer", tensors))
        first, before = int(meta["step"]), float(meta["seconds"])
    started, total, seen = time.monotonic(), 0.0, 0
    for step in range(first, fit.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, fit.steps, fit.lr)
        value = loss(step)
        if not torch.isfinite(value):
            raise SystemExit(f"the loss is {value.item()} at step {step}; lower lr (now {fit.lr})")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(fit.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                average[name].lerp_(parameter, 1 - decay)
        total, seen = total + value.item(), seen + 1
        done, seconds = step + 1, before + time.monotonic() - started
        if seen == 50 or done == fit.steps:
            eta = (fit.steps - done) * (seconds - before) / (done - first)
            print(f"{done}/{fit.steps}  loss {total / seen:.5f}  {seconds:.0f} s, {eta:.0f} s to go", flush=True)
            total, seen = 0.0, 0
        if done % fit.checkpoint_every == 0 or done == fit.steps:
            save_checkpoint(
                work,
                pack("network", dict(network.named_parameters()))
                | pack("ema", average)
                | pack("optimizer", optimizer_tensors(optimizer, names)),
                {"step": done, "seconds": seconds, "fit": asdict(fit)},
            )
    network.load_state_dict(average, strict=False)
    return before + time.monotonic() - started


def load_average(network: Module, work: Path) -> int:
    """The averaged weights of the last checkpoint; returns its step."""
    tensors, meta = load_checkpoint(work)
    network.load_state_dict(unpack("ema", tensors), strict=False)
    return int(meta["step"])


def single_thread() -> None:
    """Bits depend on the number of threads, and a second core may be somebody else's."""
    torch.set_num_threads(1)


def fresh(make: Callable[[], Module], seed: int) -> Module:
    """A network whose first weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def save_half(network: Module, folder: Path) -> None:
    """Save in half precision, as diffusers and transformers do: files halve in size, and images do not change."""
    saved: object = network.half()
    saved.save_pretrained(folder)  # type: ignore[attr-defined]
    network.float()
