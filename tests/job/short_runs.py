"""Runs of a warm-start round and a policy round, on a tiny teacher of each family of this package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_edits import write_edits
from tiny_flux import write_chroma, write_flux, write_kontext
from tiny_flux_2 import write_flux_2_dev, write_flux_2_klein
from tiny_krea_2 import write_krea_2
from tiny_lumina_2 import write_lumina_2
from tiny_models import write_dit, write_unet
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from tiny_pixart import write_pixart
from tiny_qwen_image import write_qwen_image
from tiny_sana import write_sana
from tiny_z_image import write_z_image
from torch import Tensor

from redif_ray.config import Config
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights

SHORT = ("learner.rounds=1", "rollout.groups=2", "warm_start.groups=2", "teacher.steps=2")
TEXT = {"sd": write_sd, "sdxl": write_sdxl, "sd3": write_sd3}
PIXELS = {"unet": partial(write_unet, beta_end=0.004), "dit": write_dit, "edm": write_edm}
LATER = {  # text-to-image transformers since SD3, which share most of their code
    "flux": write_flux,
    "flux-kontext": write_kontext,
    "chroma": write_chroma,
    "flux-2-klein": write_flux_2_klein,
    "flux-2-dev": write_flux_2_dev,
    "lumina-2": write_lumina_2,
    "pixart": write_pixart,
    "qwen-image": write_qwen_image,
    "krea-2": write_krea_2,
    "sana": write_sana,
    "z-image": write_z_image,
}
# Families whose config.json names no size.
WITHOUT_SIZE = {*LATER} - {"lumina-2", "pixart", "sana"}
FAMILIES = (*TEXT, *PIXELS, *LATER)
KARRAS = ("teacher.solver=heun", "teacher.schedule=karras", "student.schedule=karras")
ADAPTED = {"sd3": "to_q, to_v", "dit": "to_q, to_v"}  # attention, and convolutions of a UNet
JUDGE = "evaluation.judge=random-features"


def written(name: str, root: Path, **options: Any) -> tuple[str, ...]:
    """Write a teacher of the family to `root`; what a run of it sets. options: of the function that writes it."""
    folder = root / "teacher"
    if (write := (TEXT | LATER).get(name)) is not None:
        size = ("teacher.height=32", "teacher.width=32") if name in WITHOUT_SIZE else ()
        edits = (f"conditions.source={write_edits(root / 'edits')}",) if name == "flux-kontext" else ()
        return f"teacher.model={write(folder, **options)}", *size, *told(root), *edits
    return f"teacher.model={PIXELS[name](folder, **options)}", JUDGE, *(KARRAS if name == "edm" else ())


def adapted(name: str) -> tuple[str, ...]:
    """Settings of a student with adapters; the learning rate moves them well in two updates."""
    targets = ADAPTED.get(name, "to_q, to_v" if name in LATER else "to_q, to_v, conv1")
    return f"student.lora={{rank: 2, alpha: 5, targets: [{targets}]}}", "learner.lr=1e-2"


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
