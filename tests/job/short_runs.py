"""Runs of a warm-start round and a policy round, on a tiny teacher of each family of this package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_models import write_dit, write_unet
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from torch import Tensor

from redif_ray.config import Config
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights

SHORT = ("learner.rounds=1", "rollout.groups=2", "warm_start.groups=2", "teacher.steps=2")
TEXT = {"sd": write_sd, "sdxl": write_sdxl, "sd3": write_sd3}
PIXELS = {"unet": partial(write_unet, beta_end=0.004), "dit": write_dit, "edm": write_edm}
FAMILIES = (*TEXT, *PIXELS)
KARRAS = ("teacher.solver=heun", "teacher.schedule=karras", "student.schedule=karras")
ADAPTED = {"sd3": "to_q, to_v", "dit": "to_q, to_v"}  # attention, and convolutions of a UNet
JUDGE = "evaluation.judge=random-features"


def written(name: str, root: Path, **options: Any) -> tuple[str, ...]:
    """Write a teacher of the family to `root`; what a run of it sets. options: of the function that writes it."""
    folder = root / "teacher"
    if name in TEXT:
        return f"teacher.model={TEXT[name](folder, **options)}", *told(root)
    return f"teacher.model={PIXELS[name](folder, **options)}", JUDGE, *(KARRAS if name == "edm" else ())


def adapted(name: str) -> tuple[str, ...]:
    """Settings of a student with adapters; the learning rate moves them well in two updates."""
    return f"student.lora={{rank: 2, alpha: 5, targets: [{ADAPTED.get(name, 'to_q, to_v, conv1')}]}}", "learner.lr=1e-2"


def told(root: Path) -> tuple[str, ...]:
    """Captions, and guidance by them."""
    captions = root / "captions.txt"
    captions.write_text("\n".join(f"a picture of {i}" for i in range(40)))
    return "teacher.guidance=2.5", "student.guidance=2.5", f"conditions={{source: {captions}, held_out: 0.3}}", JUDGE


def rounds(config: Config) -> tuple[PlainLoop, dict[str, Tensor], dict[str, Tensor]]:
    """A run's loop after its rounds, its weights before and after."""
    loop = PlainLoop(config)
    before = get_weights(loop.student)
    for round in range(loop.plan.rounds):
        loop.round(round)
    return loop, before, get_weights(loop.student)


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].reshape(-1).double() for name in sorted(weights)])
