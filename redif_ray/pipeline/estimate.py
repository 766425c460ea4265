"""What a run will cost in time, memory and disk, before it starts: measured speed times counted work."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from rich.table import Table

from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion import solvers
from redif_ray.evaluation.compute import update_factor
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student, trainable
from redif_ray.pipeline import build
from redif_ray.pipeline.plan import RoundPlan
from redif_ray.types import Phase

PROCESS_MB = 450  # torch, diffusers and ray in one worker, shared pages divided among their sharers
RAY_MB = 900  # Ray's own processes with the dashboard
START_SECONDS = 35


@dataclass(frozen=True, slots=True)
class Estimate:
    """`seconds` by part of the run, `round_seconds` of one round by phase, `memory_mb` of all processes, `disk_mb` of
    the run folder; `forward_ms`: what a network call on one image takes one core alone.
    """

    seconds: dict[str, float]
    round_seconds: dict[Phase, float]
    memory_mb: float
    disk_mb: float
    forward_ms: float


def estimate(config: Config, conditions: Conditions) -> Estimate:
    torch.set_num_threads(1)
    teacher = load_model(config.teacher.model)
    plan = RoundPlan(config, conditions)
    work = _work(config, teacher, plan)
    forward = {cores: _forward_seconds(teacher, cores) for cores in {1, *(cores for _, cores in work.values())}}
    seconds = {name: calls * forward[cores] / cores for name, (calls, cores) in work.items()}
    seconds["start"] = START_SECONDS
    weights = sum(p.numel() for p in trainable(make_student(teacher, config.student.lora)).values()) * 4 / 1e6
    network = sum(p.numel() for p in teacher.network.parameters()) * 4 / 1e6
    processes = config.rollout.workers + config.reward.workers + config.learner.workers + 4
    trained = 1 if config.learner.shard else config.learner.workers  # copies of what is trained
    targets = config.evaluation.held_out + config.validation.groups + _training_groups(config, plan)
    return Estimate(
        seconds,
        _round_seconds(seconds, plan),
        memory_mb=RAY_MB + processes * (PROCESS_MB + 2 * network) + trained * 4 * weights,
        disk_mb=(config.checkpoint.keep + 1) * 5 * weights + targets * _numel(teacher.image_shape) * 4 / 1e6,
        forward_ms=forward[1] * 1e3,
    )


def _round_seconds(seconds: dict[str, float], plan: RoundPlan) -> dict[Phase, float]:
    warm = seconds["warm start"] + seconds["warm start, update"]
    own = seconds["rollout and rewards"] + seconds["update"]
    rounds = Counter(plan.phase(r) for r in range(plan.rounds))
    return {phase: (warm if phase == "warm_start" else own) / count for phase, count in rounds.items()}


def _work(config: Config, teacher: DiffusionModel, plan: RoundPlan) -> dict[str, tuple[float, int]]:
    """(network calls on single images, cores that share them) by phase."""
    cpus = os.cpu_count() or 1
    both = min(cpus, max(config.rollout.workers, config.reward.workers))
    learn = min(cpus, config.learner.workers * config.learner.threads)
    ours, theirs = (teacher.calls_per_step(side.guidance) for side in (config.student, config.teacher))
    n = config.student.steps
    own, target = n * ours, solvers.network_calls(config.teacher.solver, config.teacher.steps) * theirs
    backward = update_factor(lora=config.student.lora.rank > 0, checkpointing=config.learner.checkpointing)
    warm_rows = plan.warm_rounds * config.warm_start.groups
    own_rounds = plan.rounds - plan.warm_rounds
    groups = own_rounds * (config.draft.groups if config.method == "draft" else config.rollout.groups)
    siblings = 1 if config.method == "draft" else config.rollout.siblings
    rows, alone = groups * siblings, config.exploration.one_step and config.method == "redif"
    shared = groups * (siblings - 1)  # states that siblings see but once
    played = rows * n - shared * ((n + config.exploration.last_step) / 2 if alone else 1)
    anchor = config.learner.anchor.substeps if config.learner.anchor.weight and config.method == "redif" else 0
    learned = groups if alone and not anchor and config.learner.regulariser.kind != "mse" else played
    several = config.learner.inner_epochs > 1 or config.learner.minibatch or config.pipeline.staleness
    replayed = learned if build.rounds_apart(config) and several else 0  # to take ratios to
    checks = 1 + plan.rounds // config.validation.every
    return {
        "warm start": (warm_rows * (own + n * config.warm_start.substeps * theirs), both),
        "warm start, update": (warm_rows * own * backward, learn),
        "rollout and rewards": (int(played * (ours + anchor * theirs)) + groups * target, both),
        "update": (int(ours * (learned * config.learner.inner_epochs * backward + replayed)), learn),
        "validation": (checks * config.validation.groups * own + config.validation.groups * target, both),
        "evaluation": (
            config.evaluation.held_out * (3 * own + target + own) + config.evaluation.search * (target + 8 * own),
            both,
        ),
    }


def _training_groups(config: Config, plan: RoundPlan) -> int:
    """Groups whose teacher images the store keeps; the warm start asks for none."""
    groups = config.draft.groups if config.method == "draft" else config.rollout.groups
    return (plan.rounds - plan.warm_rounds) * groups


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _forward_seconds(teacher: DiffusionModel, together: int, batch: int = 16, repeats: int = 5) -> float:
    """Seconds of one network call on one image, on each of `together` cores at work: they share caches and memory."""
    x = torch.zeros(batch, *teacher.latent_shape)
    predict = build.predictor(teacher, teacher.blank(batch), 1.0)
    level = teacher.process.noisiest()

    @torch.no_grad()
    def timed(_: int) -> float:
        predict(x, level)
        started = time.perf_counter()
        for _ in range(repeats):
            predict(x, level)
        return (time.perf_counter() - started) / (repeats * batch)

    with ThreadPoolExecutor(together) as pool:
        return max(pool.map(timed, range(together)))


def table(e: Estimate) -> Table:
    view = Table(title="Estimate", show_header=False, box=None, padding=(0, 2), title_justify="left")
    total = sum(e.seconds.values())
    view.add_row(
        "time",
        f"{total / 60:.1f} min at {e.forward_ms:.1f} ms a network call  ("
        + ", ".join(f"{name} {s:.0f} s" for name, s in e.seconds.items() if s >= 0.5)
        + ")",
    )
    view.add_row("memory", f"{e.memory_mb / 1000:.1f} GB in all processes")
    view.add_row("disk", f"{e.disk_mb:.0f} MB")
    return view
