"""Measure a start: from the command to the first round, with the time of each stretch."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.suite import Part
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest

SHOWN = {
    "Estimate": "imports beside Ray's start, preflight, estimate",
    "start-up took": "workers, learner, calibration",
}


def startup(root: Path, stop: StopRequest, console: Console, *, starts: int = 3, base: str = "fashion_mnist") -> Part:
    found = [_start(root, f"start-{i}", stop, base) for i in range(starts)]
    rows = [
        [text, *(f"{times[i] - (times[i - 1] if i else 0):.1f}" for times in found)]
        for i, text in enumerate(SHOWN.values())
    ]
    whole = [times[-1] for times in found]
    rows.append(["to the end of calibration", *(f"{seconds:.1f}" for seconds in whole)])
    return Part(
        "startup",
        "Start of `redif distill`",
        ["seconds", *(f"start {i + 1}" for i in range(starts))],
        rows,
        {"seconds": sorted(whole)[len(whole) // 2]},
        [
            "From the command to the first round, with a cluster of its own. Driver, workers and learner, six "
            "processes, import torch and diffusers; coordinator, weight store and metrics writer do without."
        ],
    )


def _start(root: Path, name: str, stop: StopRequest, base: str) -> list[float]:
    """Seconds until each line of `SHOWN` was there."""
    command = [
        sys.executable,
        "-m",
        "redif_ray.cli",
        "distill",
        base,
        f"run.root={root}",
        f"run.name={name}",
        "tracking.uri=off",
    ]
    began = time.perf_counter()
    times: list[float] = []
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            said.append(line)
            if list(SHOWN)[len(times)] in line:
                times.append(time.perf_counter() - began)
            if len(times) == len(SHOWN) or stop.requested:
                run.send_signal(signal.SIGTERM)
                break
        run.stdout.read()
    stop.check()
    if len(times) < len(SHOWN):
        raise UserError(f"`{' '.join(command)}` did not start:\n{''.join(said[-20:])}")
    return times
