"""Run the evaluation on images of 1,024 pixels with stubbed networks, and print by how many MB the process grew.

python evaluation_probe.py HELD_OUT FOLDER
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console

from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation import seen
from redif_ray.faults import RoundData
from redif_ray.job import measure as measuring
from redif_ray.job.progress import EVALUATION, Progress
from redif_ray.learner.compute import Accounts
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.types import Meta, Reference, Seen, Work, WorkUnit

EDGE, DIMENSIONS = 1024, 64
DRAWS = np.random.default_rng(0)


def features(count: int) -> np.ndarray:
    return DRAWS.normal(size=(count, DIMENSIONS)).astype(np.float32)


def looked_at(unit: WorkUnit, grey: float) -> Seen:
    """Measure grey images beside random ones, as a reward worker does."""
    stubbed: Any = seen
    stubbed.embedded, stubbed.fit = (lambda _, images, __: features(len(images))), (lambda *_: {})
    images, teacher = torch.full((unit.rows, 3, EDGE, EDGE), grey), torch.rand(unit.rows, 3, EDGE, EDGE)
    return seen.see(unit, images, teacher, {"mse": DRAWS.random(unit.rows)}, stubbed)


class Workers:
    """A process that sees images, so that this one holds only what comes back."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"))

    def see(self, units: list[WorkUnit], grey: float) -> tuple[Seen, list[Meta]]:
        parts = list(self.pool.map(looked_at, units, repeat(grey)))
        return seen.joined(parts), [Meta(unit, "worker", (Work("evaluation", 1.0, 1),)) for unit in units]


def main(count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    overrides = [f"evaluation={{held_out: {count}, search: 8, batch: 8, judge: random-features, bootstrap: 40}}"]
    config: Config = load("smoke", overrides)
    teacher = teacher_outline(config.teacher)
    plan = RoundPlan(config, factory.conditions(config, teacher))
    answer = RoundData((), tuple((i, (Reference("stub", features(8)),)) for i in range(-(-count // 8))), 0.0)
    workers = Workers()
    run: Any = SimpleNamespace(
        config=config,
        plan=plan,
        teacher=teacher,
        folder=SimpleNamespace(path=folder),
        coordinator=SimpleNamespace(reference=SimpleNamespace(remote=lambda *_: answer)),
        stop=SimpleNamespace(check=lambda: None),
        get=lambda value: value,
        sample=lambda stream, n, key: workers.see(plan.deploy(stream, n), 0.25),
        see=lambda units, sources, judged=True: workers.see(units, 0.5),
        ask_reward=lambda method, calls: ([], [[False] * len(units) for (units,) in calls]),
    )
    process, over, most = psutil.Process(), threading.Event(), [0]
    workers.see(plan.deploy(Stream.HELD_OUT, 8), 0.5)
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    stubbed: Any = measuring
    stubbed.units_done = lambda _: 0
    progress = Progress(Console(quiet=True), {EVALUATION: 1.0})
    measured = measuring.measure(run, "checkpoint/best-1", Accounts(config), progress)
    over.set()
    thread.join()
    assert [len(pictures) for _, pictures in measured.pictures] == [10] * len(measured.pictures)
    assert measured.fields["arms"]["student"]["paired"]["pixel_mse"] > 0
    print(f"{(most[0] - before) / 1e6:.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
