"""Measure the cost of Ray: the rounds of a run beside the same rounds in one plain process, on the same cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from benchmarks.pipeline.cores import Cores
from benchmarks.short_runs import periods, recipe, updates, worked
from benchmarks.suite import Part
from benchmarks.watch import watching
from redif_ray.checkpoint import load_checkpoint
from redif_ray.interrupt import StopRequest
from redif_ray.job.distill import run_part
from redif_ray.loop import PlainLoop

LOOK_SECONDS = 1.0
HEAD = ["", "seconds a round", "ratio", "CPU seconds, work", "CPU seconds, Ray's other processes"]
STAGES = ("targets", "rollout", "score", "anchor", "update")


def overhead(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    rounds: int = 8,
    groups: int = 16,
    base: str = "fashion_mnist",
    pinned: bool = False,
) -> Part:
    """pinned: all processes of both share one core, where nothing is hidden by working side by side."""
    setting = (
        f"rollout.groups={groups}",
        f"learner.rounds={rounds}",
        f"validation.every={rounds}",
        f"checkpoint.every={rounds}",
    )
    cores = Cores()
    with _one_core() if pinned else nullcontext():
        before, used, expected = _plain(root, "plain", setting, rounds, stop, base)
        config = recipe(root, "ray", *setting, base=base)
        with watching(cores.look, LOOK_SECONDS):
            folder = run_part(config, stop, until=rounds, resume=False, console=console)
        after, used_after, _ = _plain(root, "plain-again", setting, rounds, stop, base)
    newest = sorted((folder / "checkpoints").glob("round-*"))[-1]
    alike = load_checkpoint(newest)[1]["weights_sha256"] == expected
    plain, ray = float(np.median([*before, *after])), float(np.median(periods(folder)))
    plain_cpu, at = float(np.median([*used, *used_after])), updates(folder)
    work_cpu, other_cpu = (seconds / (len(at) - 1) for seconds in cores.between(at[0], at[-1]))
    drift = float(np.median(after) / np.median(before) - 1)
    work = worked(folder, rounds)
    busy = sum(work.get(stage, 0.0) for stage in STAGES)
    return Part(
        "one_core" if pinned else "overhead",
        f"Overhead of Ray{', all processes on one core' if pinned else ''}",
        HEAD,
        [
            ["plain loop", f"{plain:.2f}", "1", f"{plain_cpu:.2f}", ""],
            [
                "Ray: 1 rollout, 1 reward worker, 1 learner",
                f"{ray:.2f}",
                f"{ray / plain:.3f}",
                f"{work_cpu:.2f}",
                f"{other_cpu:.2f}",
            ],
        ],
        {
            "plain_seconds": plain,
            "ray_seconds": ray,
            "ratio": ray / plain,
            "same_weights": float(alike),
            "plain_cpu_seconds": plain_cpu,
            "work_cpu_seconds": work_cpu,
            "other_cpu_seconds": other_cpu,
        },
        [
            f"Medians of {len(before)} rounds before and as many after for the plain loop (drift between them "
            f"{drift:+.1%}), of {len(periods(folder))} for Ray; staleness 0, {groups} groups a round. Weights after "
            f"{rounds} rounds {'are the same, bit for bit' if alike else 'DIFFER'}. Workers and learner report "
            f"{busy:.2f} s of work a round, as the clock on the wall counts it. Ray's other processes, and the driver, "
            f"take {other_cpu / ray:.0%} of a core all along, whatever the round; workers and learner "
            f"{work_cpu / plain_cpu:.2f} of the plain loop's CPU seconds for the same work."
        ],
    )


def _plain(
    root: Path, name: str, setting: tuple[str, ...], rounds: int, stop: StopRequest, base: str
) -> tuple[list[float], list[float], str]:
    """Seconds of each round but the first two, CPU seconds of the same, and the checksum of the weights."""
    loop = PlainLoop(recipe(root, name, *setting, f"teacher.store={root / name}-targets", base=base))
    seconds, used = [], []
    for round in range(rounds):
        stop.check()
        started, cpu = time.perf_counter(), time.process_time()
        loop.round(round)
        seconds.append(time.perf_counter() - started)
        used.append(time.process_time() - cpu)
    return seconds[2:], used[2:], loop.checksum()


@contextmanager
def _one_core() -> Iterator[None]:
    """This process, and those that it starts, on the first of its cores."""
    process = psutil.Process()
    cores = process.cpu_affinity()
    process.cpu_affinity(cores[:1])
    try:
        yield
    finally:
        process.cpu_affinity(cores)
