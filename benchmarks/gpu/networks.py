"""Networks of published sizes, with random weights, through the whole pipeline.

Beside it, on the same device, what plain loops of diffusers take: the pipeline's own sampling, and forward and backward
passes of its network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from rich.console import Console

from benchmarks.gpu.random_pipelines import Architecture
from benchmarks.short_runs import median_work, recipe
from benchmarks.suite import Part
from benchmarks.watch import watching
from redif_ray.config import Config
from redif_ray.diffusion.noise import Stream
from redif_ray.interrupt import StopRequest
from redif_ray.job.distill import run_part
from redif_ray.types import WorkUnit

LOOK_SECONDS = 0.2
HEAD = ["", "redif-ray", "plain diffusers", "ratio"]
CAPTION = "a photo of a red fox asleep in fresh snow"


@dataclass(frozen=True, slots=True)
class Case:
    """A network and the recipe that distils it."""

    name: str
    title: str
    architecture: Architecture
    base: str
    overrides: tuple[str, ...] = ()


def networks(root: Path, stop: StopRequest, console: Console, *, case: Case, rounds: int = 4) -> Part:
    """Rounds of policy gradient by a recipe with pixel rewards, the first of them left out of all figures."""
    where, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16
    teacher = case.architecture.write(root / "teacher", device=where, dtype=dtype)
    config = _config(root, case, teacher, rounds, where)
    before = used(where)
    peak = [before]
    with watching(lambda: peak.append(used(where)), LOOK_SECONDS):
        folder = run_part(config, stop, until=rounds, resume=False, console=console)
    stop.check()
    rollout, update = (median_work(folder, stage) for stage in ("rollout", "update"))
    images = config.rollout.groups * config.rollout.siblings
    plain_rollout, plain_update = plain(config, teacher, where, dtype, stop)
    rows = [
        [
            "rollout, images/s",
            f"{images / rollout:.2f}",
            f"{images / plain_rollout:.2f}",
            f"{plain_rollout / rollout:.2f}",
        ],
        ["update, s", f"{update:.2f}", f"{plain_update:.2f}", f"{update / plain_update:.2f}"],
        ["peak memory, GB, of all processes", f"{(max(peak) - before) / 1e9:.1f}", "", ""],
    ]
    r = config.rollout
    return Part(
        case.name,
        case.title,
        HEAD,
        rows,
        {
            "images_per_second": images / rollout,
            "plain_images_per_second": images / plain_rollout,
            "update_seconds": update,
            "plain_update_seconds": plain_update,
            "peak_gb": (max(peak) - before) / 1e9,
        },
        [
            f"`{case.base}` with `{' '.join(case.overrides)}`, bfloat16, {r.groups} groups of {r.siblings}, N = "
            f"{config.student.steps}, guidance {config.student.guidance:g}; {rounds - 1} rounds, the one before them "
            "not counted. Plain sampling is diffusers' pipeline without its decoder, as many images, as many at once; "
            "siblings do not share a step there. The plain update is a forward and a backward pass for each state, "
            "as many at once, checkpointed where the recipe is, and one step of AdamW."
        ],
    )


def _config(root: Path, case: Case, teacher: Path, rounds: int, where: str) -> Config:
    share = 0.3 if where == "cuda" else 0
    return recipe(
        root,
        case.name,
        f"teacher.model={teacher}",
        "conditions.source=null",
        "evaluation.judge=random-features",
        "reward.terms={mse: {}}",
        f"learner.rounds={rounds}",
        f"validation={{every: {rounds}, groups: 8}}",
        f"checkpoint.every={rounds}",
        *(f"{role}.gpus={share}" for role in ("rollout", "reward", "learner")),
        *case.overrides,
        base=case.base,
    )


def used(where: str) -> int:
    """Bytes of the device's memory that all processes together use."""
    if where == "cuda":
        free, total = torch.cuda.mem_get_info()
        return total - free
    return int(psutil.virtual_memory().used)


def plain(config: Config, teacher: Path, where: str, dtype: torch.dtype, stop: StopRequest) -> tuple[float, float]:
    """Seconds of plain diffusers for the images of a round, and for its update."""
    pipe = DiffusionPipeline.from_pretrained(teacher, torch_dtype=dtype, use_safetensors=True).to(where)
    pipe.set_progress_bar_config(disable=True)
    r, s = config.rollout, config.student
    at_once = r.unit_groups * r.siblings

    def sample() -> None:
        for _ in range(r.groups // r.unit_groups):
            stop.check()
            pipe([CAPTION] * at_once, num_inference_steps=s.steps, guidance_scale=s.guidance, output_type="latent")

    return _median(sample, where), _median(_step(config, pipe, where, dtype), where)


def _step(config: Config, pipe: DiffusionPipeline, where: str, dtype: torch.dtype) -> Callable[[], None]:
    """One optimiser step on as many states as a round of the run has; a guided one is two rows of the network."""
    network, lora, r = pipe.unet, config.student.lora, config.rollout
    network.requires_grad_(False)
    if lora.rank:
        network.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=lora.targets))
    else:
        network.requires_grad_(True)
    if config.learner.activation_checkpointing:
        network.enable_gradient_checkpointing()
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    unit = WorkUnit(0, 0, "policy", Stream.TRAIN, tuple(range(r.groups)), (None,) * r.groups, r.siblings)
    states = unit.predictions(config.student.steps)
    size, side = network.config.sample_size, 1 if config.student.guidance == 1 else 2
    embedded = _context(pipe)

    def step() -> None:
        for start in range(0, states, config.learner.states_at_once):
            rows = side * min(config.learner.states_at_once, states - start)
            x = torch.randn(rows, network.config.in_channels, size, size, device=where, dtype=dtype)
            context = {name: value.expand(rows, *value.shape[1:]) for name, value in embedded.items()}
            states_of = context.pop("encoder_hidden_states")
            added = {"added_cond_kwargs": context} if context else {}
            output = network(x, torch.tensor(500, device=where), states_of, **added).sample
            (output.float().square().mean() / states).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


@torch.no_grad()
def _context(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """Return the encoding of one caption, as the network takes it."""
    states, _, *pooled = pipe.encode_prompt(
        CAPTION, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if not pooled:
        return {"encoder_hidden_states": states}
    edge = float(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    ids = torch.tensor([[edge, edge, 0, 0, edge, edge]], device=pipe.device, dtype=states.dtype)
    return {"encoder_hidden_states": states, "text_embeds": pooled[0], "time_ids": ids}


def _median(work: Callable[[], None], where: str, repeats: int = 3) -> float:
    """Seconds; the first time is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if where == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))
