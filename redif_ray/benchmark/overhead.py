"""What Ray costs: a run's rounds on Ray beside the same rounds in one plain process, on the same cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from redif_ray.benchmark.part import Part, periods, recipe, worked
from redif_ray.benchmark.plain_loop import PlainLoop
from redif_ray.checkpoint import load_checkpoint
from redif_ray.pipeline.distill import run_part
from redif_ray.pipeline.interrupt import StopRequest

STAGES = ("targets", "rollout", "score", "anchor", "update")


def overhead(
    root: Path, stop: StopRequest, console: Console, *, rounds: int = 8, groups: int = 16, base: str = "fashion_mnist",
    pinned: bool = False,
) -> Part:
    """pinned: all processes of both share one core, where nothing is hidden by working side by side."""
    setting = (f"rollout.groups={groups}", f"learner.rounds={rounds}", f"validation.every={rounds}",
               f"checkpoint.every={rounds}")
    with _one_core() if pinned else nullcontext():
        before, expected = _plain(root, "plain", setting, rounds, stop, base)
        config = recipe(root, "ray", *setting, base=base)
        folder = run_part(config, stop, until=rounds, resume=False, console=console)
        after, _ = _plain(root, "plain-again", setting, rounds, stop, base)
    newest = sorted((folder / "checkpoints").glob("round-*"))[-1]
    alike = load_checkpoint(newest)[1]["weights_sha256"] == expected
    plain, ray = float(np.median([*before, *after])), float(np.median(periods(folder)))
    drift = float(np.median(after) / np.median(before) - 1)
    work = worked(folder, rounds)
    busy = sum(work.get(stage, 0.0) for stage in STAGES)
    return Part(
        "one_core" if pinned else "overhead",
        f"Overhead of Ray{', all processes on one core' if pinned else ''}", ["", "seconds a round", "ratio"],
        [["plain loop", f"{plain:.2f}", "1"], ["Ray: 1 rollout, 1 reward worker, 1 learner", f"{ray:.2f}",
                                              f"{ray / plain:.3f}"]],
        {"plain_seconds": plain, "ray_seconds": ray, "ratio": ray / plain, "same_weights": float(alike)},
        [f"Medians of {len(before)} rounds before and as many after for the plain loop (drift between them "
         f"{drift:+.1%}), of {len(periods(folder))} for Ray; staleness 0, {groups} groups a round. Weights after "
         f"{rounds} rounds {'are the same, bit for bit' if alike else 'DIFFER'}. Workers and learner report "
         f"{busy:.2f} s of work a round, as the clock on the wall counts it."],
    )  # fmt: skip


def _plain(
    root: Path, name: str, setting: tuple[str, ...], rounds: int, stop: StopRequest, base: str
) -> tuple[list[float], str]:
    """Seconds of each round but the first two, and the checksum of the weights."""
    loop, seconds = PlainLoop(recipe(root, name, *setting, f"teacher.store={root / name}-targets", base=base)), []
    for round in range(rounds):
        stop.check()
        started = time.perf_counter()
        loop.round(round)
        seconds.append(time.perf_counter() - started)
    return seconds[2:], loop.checksum()


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
