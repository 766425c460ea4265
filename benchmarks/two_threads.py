"""Training on one and on two threads, alone and beside other processes, by how threads wait for each other.

    python -m benchmarks.two_threads [--others 0 2 8] [--steps 10]

A step is a forward and a backward pass of the shipped Fashion-MNIST teacher on 64 images. Each row is a process of its
own, since OpenMP reads how threads wait when torch is imported; the other processes do nothing but count. "long" is
OpenMP's default, "short" what `redif_ray.busy` sets, and "asleep" OMP_WAIT_POLICY=PASSIVE. Columns: seconds
of a step, and seconds of a core in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redif_ray.busy import SHORT_WAITS
from redif_ray.evaluation.report import markdown_table

WAYS = ((1, "short"), (2, "long"), (2, "short"), (2, "asleep"))  # threads, and how they wait
WAITING = {"long": {}, "short": SHORT_WAITS, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
ROWS = 64


def measured(threads: int, steps: int) -> tuple[float, float]:
    """Return the seconds of a step in this process, and the seconds of a core that it takes."""
    import torch

    from redif_ray.config import load
    from redif_ray.models.registry import load_teacher

    torch.set_num_threads(threads)
    model = load_teacher(load("fashion_mnist").teacher)
    model.network.requires_grad_(True)
    x, level, encoded = torch.randn(ROWS, *model.latent_shape), model.process.noisiest(), model.blank(ROWS)

    def step() -> None:
        model.predict(x, level, encoded).x0.square().mean().backward()

    step()
    started, before = time.perf_counter(), _core_seconds()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps, (_core_seconds() - before) / steps


def _core_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def beside(others: int) -> Iterator[None]:
    """Keep so many processes counting meanwhile."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def row(threads: int, waiting: str, steps: int) -> list[str]:
    """Return the cells of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.two_threads", "--threads", str(threads), "--steps", str(steps)]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", *SHORT_WAITS)}
    environment |= WAITING[waiting]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [str(threads), waiting, *found.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 2, 8], help="numbers of other processes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, help="measure this process alone")
    options = parser.parse_args()
    if options.threads:
        print(*(f"{seconds:.3f}" for seconds in measured(options.threads, options.steps)))
        return
    rows = []
    for others in options.others:
        with beside(others):
            rows += [[str(others), *row(threads, waiting, options.steps)] for threads, waiting in WAYS]
    print(markdown_table(["other processes", "threads", "waiting", "seconds", "seconds of a core"], rows))


if __name__ == "__main__":
    main()
