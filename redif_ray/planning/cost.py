"""The estimate of a run's time, memory and disk before it starts: counted work times measured or assumed speed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from rich.table import Table

from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.evaluation.compute import decode_flops, prediction_flops
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.calls import Calls, network_calls
from redif_ray.planning.disk import disk
from redif_ray.planning.host_memory import main_memory_mb
from redif_ray.planning.memory import footprints, workers
from redif_ray.planning.nodes import share_cards
from redif_ray.planning.rounds import RoundPlan, teacher_block
from redif_ray.planning.timing import Speed, cpu_speed

GPU_FLOPS = {"float32": 20e12, "bfloat16": 100e12, "float16": 100e12}  # FLOP/s of one GPU: assumed, not measured
START_SECONDS = 45
UNREAD = Conditions((None,), (None,))  # where the conditions are not read yet; each group may have one of its own


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated time, memory and disk of a run.

    seconds: by part of the run. round_seconds: of one round, by phase. memory_mb: of all processes, without
    activations. disk_mb: that it writes. forward_ms: time of a network call on one image on one core, or on one GPU
    where no role computes on CPUs. gpu_flops: FLOPs of the network calls on GPUs; no GPU is timed, so their seconds
    assume `GPU_FLOPS`.
    """

    seconds: dict[str, float]
    round_seconds: dict[str, float]
    memory_mb: float
    disk_mb: float
    forward_ms: float
    gpu_flops: float

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def estimate(config: Config, conditions: Conditions = UNREAD) -> Estimate:
    """Return the estimate of a run, in a few seconds for a network of any size.

    Network calls are counted on a network without weights. One is timed if it runs on CPUs and the network is small.
    """
    teacher = teacher_outline(config.teacher, dtype=getattr(torch, config.networks.precision))
    plan = RoundPlan(config, conditions)
    flops, decode = prediction_flops(teacher), decode_flops(teacher)
    by_gpu = flops / GPU_FLOPS[config.networks.precision]
    speeds = _speeds(config, teacher, plan, flops, decode)
    evaluating = speeds[config.evaluation.images_at_once]
    work = network_calls(config, teacher, plan, decode / flops if config.reward.gpus else evaluating.decode)
    seconds = {
        name: _on_gpus(config, calls, by_gpu) + _on_cpus(config, calls, _batches(config, plan, name), speeds)
        for name, calls in work.items()
    }
    seconds["start"] = START_SECONDS
    on_gpus = sum(n for calls in work.values() for role, n in calls.items() if workers(config)[role][1])
    return Estimate(
        seconds,
        _round_seconds(seconds, plan),
        memory_mb=main_memory_mb(config, footprints(config, activations=False)),
        disk_mb=disk(config, teacher, conditions).total / 1e6,
        forward_ms=1e3 * evaluating.call.get(1, by_gpu),
        gpu_flops=on_gpus * flops,
    )


def _round_seconds(seconds: dict[str, float], plan: RoundPlan) -> dict[str, float]:
    """Return the seconds of one round by the name of its phase."""
    return {p.name: (seconds[p.title] + seconds[f"{p.title}, update"]) / p.rounds for p in plan.phases}


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a part of a run.

    groups: number of groups of a round, or of images of an arm of an evaluation. unit: number of these in a work unit.
    rows: images of a network call, by role.
    """

    groups: int
    unit: int
    rows: Mapping[str, int]

    @property
    def units(self) -> int:
        """Return the number of work units."""
        return max(1, math.ceil(self.groups / self.unit))

    def share(self, workers: int) -> float:
        """Return the share of the groups that the busiest of several workers has, which take whole work units."""
        full, rest = divmod(self.groups, self.unit)
        each, left = divmod(full, workers)
        return (each * self.unit + (self.unit if left else rest)) / max(1, self.groups)


def _batches(config: Config, plan: RoundPlan, part: str) -> Batches:
    for phase in plan.phases:
        if part.startswith(phase.title):
            rows = phase.unit_groups * phase.siblings
            rewarding = teacher_block(config, phase) if phase.teacher_images else rows
            states = max(1, min(config.learner.states_at_once, phase.groups))
            return Batches(phase.groups, phase.unit_groups, {"rollout": rows, "reward": rewarding, "learner": states})
    images = {"calibration": config.reward.calibration, "validation": config.validation.groups}
    at_once = config.evaluation.images_at_once
    return Batches(images.get(part, config.evaluation.held_out), at_once, {"rollout": at_once, "reward": at_once})


def _speeds(
    config: Config, teacher: DiffusionModel, plan: RoundPlan, flops: float, decode: float
) -> Mapping[int, Speed]:
    """Return the speeds of the roles without GPUs by the images of a call; each is by the number of busy cores."""
    parts = {"rollout": ("rollout", "reward"), "learner": ("learner",)}
    widths = {_cores(config, roles) for roles in parts.values()} - {0}
    rows = {config.evaluation.images_at_once}
    for phase in plan.phases:
        by_role = _batches(config, plan, phase.title).rows
        rows |= {count for role, count in by_role.items() if not workers(config)[role][1]}
    if not widths:
        return dict.fromkeys(rows, Speed({}, decode / flops))
    threads = min(os.cpu_count() or 1, config.learner.threads)
    return cpu_speed(config.teacher, teacher, flops, decode, rows, {1, *widths}, threads)


def _width(config: Config, role: str) -> int:
    """Return the number of cores that the workers of a role without GPUs can use."""
    count = workers(config)[role][0] * (config.learner.threads if role == "learner" else 1)
    return min(os.cpu_count() or 1, count)


def _cores(config: Config, roles: Iterable[str]) -> int:
    """Return the number of cores that those of the roles without GPUs use together; 0 if all have GPUs."""
    return min(os.cpu_count() or 1, sum(_width(config, role) for role in roles if not workers(config)[role][1]))


def _on_gpus(config: Config, calls: Calls, by_gpu: float) -> float:
    """Return the seconds of one part of the run on GPUs. by_gpu: seconds of one call on a GPU."""
    roles = workers(config)
    if share_cards(config):  # each role has whole GPUs in its turn
        gpus = float(max(roles[role][0] for role in calls))
    else:
        gpus = max(1.0, sum(count * share for count, share in (roles[role] for role in calls)))
    return sum(number for role, number in calls.items() if roles[role][1]) * by_gpu / gpus


def _on_cpus(config: Config, calls: Calls, batches: Batches, speeds: Mapping[int, Speed]) -> float:
    """Return the seconds of one part of the run on CPUs, where roles work at once on different work units.

    The part takes as long as its slowest role, and the others for one work unit; or longer where cores are too few.
    """
    cores = _cores(config, calls)
    if not cores:
        return 0.0
    on_cpus = {role: number for role, number in calls.items() if not workers(config)[role][1]}
    busy = {role: number * _seconds(speeds[batches.rows[role]], role, cores) for role, number in on_cpus.items()}
    alone = [seconds * _share(config, role, batches) for role, seconds in busy.items()]
    return max(sum(busy.values()) / cores, max(alone) + (sum(alone) - max(alone)) / batches.units)


def _seconds(speed: Speed, role: str, cores: int) -> float:
    """Return the seconds of a core that a role's call on one image takes while `cores` are busy."""
    return speed.call[cores] * (speed.threaded if role == "learner" else 1.0)


def _share(config: Config, role: str, batches: Batches) -> float:
    """Return the share of a role's work that its busiest worker does; the learner's threads share all of it."""
    width = _width(config, role)
    return 1 / width if role == "learner" else batches.share(width)


def duration(e: Estimate) -> str:
    """Return the estimated time in words, with its parts."""
    rolled = {name: f"{name}, rollouts" for name in e.seconds if f"{name}, update" in e.seconds}
    parts = "; ".join(f"{rolled.get(name, name)} {_span(s)}" for name, s in e.seconds.items() if s >= 0.5)
    pace = f"at {e.forward_ms:.1f} ms a network call"
    if e.gpu_flops:
        rates = f"{GPU_FLOPS['float32'] / 1e12:.0f} TFLOP/s in float32, {GPU_FLOPS['bfloat16'] / 1e12:.0f} in 16 bits"
        pace += f"; {e.gpu_flops / 1e12:,.0f} TFLOPs on GPUs, if each GPU reaches {rates} (assumed, not timed)"
    return f"{_span(e.total_seconds)} {pace}  ({parts}), without the time of the rewards"


def table(e: Estimate) -> Table:
    """Return the estimate as a table for the terminal."""
    view = Table(title="Estimate", show_header=False, box=None, padding=(0, 2), title_justify="left")
    view.add_row("time", duration(e))
    view.add_row(
        "memory", f"{e.memory_mb / 1000:.1f} GB in all processes, without activations, which `redif doctor` counts too"
    )
    view.add_row("disk", f"{e.disk_mb:.0f} MB")
    return view


def _span(seconds: float) -> str:
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
