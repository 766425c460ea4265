"""A whole run of a network of published size on one GPU, which all roles share, by `redif distill`.

Memory of each process and seconds by part stand beside what `redif doctor` and the estimate say before the start;
images a second of rollout and update stand beside plain loops of diffusers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gpu.networks import LOOK_SECONDS, plain, used
from benchmarks.gpu.peaks import environment, noted
from benchmarks.gpu.random_pipelines import SD15, Architecture
from benchmarks.real_size import memory, role_of, seconds, start, wait
from benchmarks.short_runs import median_work
from benchmarks.suite import Part
from benchmarks.watch import watching
from redif_ray.config import Config, load
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest
from redif_ray.job.preflight import preflight
from redif_ray.planning.cost import estimate
from redif_ray.planning.gpu_memory import fullest_gpu_mb
from redif_ray.planning.host_memory import main_memory_mb
from redif_ray.planning.memory import Footprints, footprints

BASE = "sd15_coco_5step"
SHORT = (
    "conditions.source=null",
    "teacher.steps=20",
    "reward.terms={mse: {normalise: std}}",
    "reward.calibration=8",
    "rollout.groups=4",
    "warm_start={rounds: 2, groups: 8, lr: 1.0e-4, minibatch: 40}",
    "learner.rounds=4",
    "validation={every: 4, groups: 16}",
    "guard.recall_floor=0",
    "checkpoint={every: 4, keep: 1}",
    "evaluation={held_out: 24, search: 8, batch: 8, judge: random-features}",
    "tracking.uri=off",
)
ALL = "all processes"


def settings(root: Path, teacher: Path) -> list[str]:
    """Return the run's overrides. root: of the run folder. teacher: the pipeline."""
    return [*SHORT, f"teacher.model={teacher}", f"run.root={root}", "run.name=run"]


def whole_run(
    root: Path,
    stop: StopRequest,
    _: Console,
    *,
    architecture: Architecture = SD15,
    overrides: Sequence[str] = (),
    where: str = "cuda",
) -> Part:
    """Distil a pipeline with random weights. Raises UserError without a GPU.

    where: "cuda", or "cpu" for a small pipeline, with `overrides` that ask for no GPU.
    """
    if where == "cuda" and not torch.cuda.is_available():
        raise UserError("this part measures a run on one GPU, and torch finds none; start it on a machine that has one")
    teacher = architecture.write(root / "teacher", device=where, dtype=torch.bfloat16)
    given = [*settings(root, teacher), *overrides]
    config: Config = load(BASE, given)
    expected, said = estimate(config, preflight(config)), _said(config, footprints(config), where)
    began = time.monotonic()
    measured = _distilled(root, given, where, stop)
    took = time.monotonic() - began
    images = config.rollout.groups * config.rollout.siblings
    stages = ("rollout", "update")
    own = {stage: images / median_work(root / "run", stage, first=config.warm_start.rounds + 1) for stage in stages}
    beside = dict(zip(stages, (images / s for s in plain(config, teacher, where, torch.bfloat16, stop)), strict=True))
    speeds = [[f"{s}, images/s", f"{beside[s]:.2f}", f"{own[s]:.2f}", f"{own[s] / beside[s]:.2f}"] for s in stages]
    return Part(
        "run",
        "Stable Diffusion 1.5 at 512 x 512 pixels, a whole run on one GPU",
        ["", "said before, or plain diffusers", "measured", "measured / other"],
        memory(said, measured) + seconds(root / "run", expected, took) + speeds,
        {"wall_seconds": took}
        | {f"{role.replace(' ', '_')}_said_mb": mb for role, mb in said.items()}
        | {f"{role.replace(' ', '_')}_peak_mb": measured[role] for role in said}
        | {f"{stage}_images_per_second": own[stage] for stage in stages}
        | {f"plain_{stage}_images_per_second": beside[stage] for stage in stages},
        [
            f"`{BASE}` with `{' '.join(SHORT)}`. Memory of a role is the most that its tensors took at once, beside "
            f"`redif doctor`; of {ALL}, what was taken on the card, with CUDA's own. Seconds stand beside the "
            "estimate, which assumes a GPU's speed. Rollout and update are medians over the policy rounds but the "
            "first, beside diffusers' pipeline without its decoder and forward and backward passes of its network."
        ],
    )


def _said(config: Config, found: Footprints, where: str) -> dict[str, float]:
    together = fullest_gpu_mb(config, found.roles) if where == "cuda" else main_memory_mb(config, found)
    return {role: one.total for role, one in found.roles.items()} | {ALL: together}


def _distilled(root: Path, given: Sequence[str], where: str, stop: StopRequest) -> dict[str, float]:
    """Run `redif distill`; return the peaks of memory in MB, by role of the largest process, and of all at once."""
    notes = root / "peaks"
    notes.mkdir()
    if where == "cuda":
        torch.cuda.empty_cache()  # of what made the pipeline
    before = used(where)
    taken = [before]
    with watching(lambda: taken.append(used(where)), LOOK_SECONDS):
        wait(start("distill", BASE, *given, **environment(notes, where)), stop)
    peaks: dict[str, float] = {}
    for title, mb in noted(notes):
        peaks[role_of(title)] = max(peaks.get(role_of(title), 0.0), mb)
    return peaks | {ALL: (max(taken) - before) / 1e6}
