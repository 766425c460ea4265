"""Measure how coordinator, queues and object store scale with rollout workers, which only sleep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray import cloudpickle
from rich.console import Console

from benchmarks.pipeline.simulated import PROCESSES, Simulated, Sizes, processes, spread
from benchmarks.short_runs import recipe
from benchmarks.suite import Part
from redif_ray.cluster.connect import connect
from redif_ray.config import Config
from redif_ray.coordinator.coordinator import Coordinator
from redif_ray.data.conditions import CONDITIONS
from redif_ray.faults import fetched
from redif_ray.interrupt import StopRequest
from redif_ray.job.metrics_writer import MetricsWriter
from redif_ray.models.registry import load_teacher
from redif_ray.planning import factory
from redif_ray.weights.store import WeightStore

SD15 = Sizes(
    "Stable Diffusion",
    latent=(4, 64, 64),
    image=(3, 512, 512),
    steps=5,
    seconds=4.0,
    dtype=np.float16,
    image_dtype=np.uint8,
)
FASHION_MNIST = Sizes("Fashion-MNIST", latent=(1, 28, 28), image=(1, 28, 28), steps=5, seconds=4.0)
HEAD = ["rollout workers", "work units a round", "seconds a round", "ideal", "efficiency", "MB a round", "core seconds"]


def scaling(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    weak: Sequence[int] = (1, 16, 64),
    strong: Sequence[int] = (4, 16, 64),
    sizes: Sizes = SD15,
    siblings: int = 16,
    rounds: int = 3,
    name: str = "scaling",
) -> Part:
    """weak: one work unit a worker. strong: as many units as the most workers, whoever does them. name: of the part."""
    cases = [("weak", w, w) for w in weak] + [("strong", w, max(strong)) for w in strong]
    found: dict[tuple[int, int], _Measured] = {}  # by workers and work units
    store = max([*weak, *strong]) * _megabytes(sizes, siblings) * 4 + 200
    with connect(recipe(root, "scaling", f"ray.object_store_mb={int(store)}")):
        for _, workers, units in cases:
            if (workers, units) not in found:
                found[workers, units] = _measure(root, stop, workers, units, sizes, siblings, rounds)
    fewest = {"weak": found[weak[0], weak[0]].seconds, "strong": found[strong[0], max(strong)].seconds * strong[0]}
    rows, numbers = [], {}
    for kind, workers, units in cases:
        m, ideal = found[workers, units], fewest[kind] / (1 if kind == "weak" else workers)
        numbers[f"{kind}_{workers}"] = ideal / m.seconds
        rows.append(
            [
                f"{workers}, {kind}",
                str(units),
                f"{m.seconds:.2f}",
                f"{ideal:.2f}",
                f"{ideal / m.seconds:.3f}",
                f"{units * _megabytes(sizes, siblings):.1f}",
                f"{m.core_seconds:.2f}",
            ]
        )
    return Part(
        name,
        f"Scaling with rollout workers, simulated: tensors of {sizes.model}'s size",
        HEAD,
        rows,
        numbers,
        [
            f"Workers sleep {sizes.seconds:g} s a work unit of one group of {siblings}, at most {PROCESSES} processes "
            f"share them, and return what {sizes.steps} steps leave, of which one in turn explores; the real "
            "coordinator hands out work units, and this process reads every round as a learner does and touches each "
            f"tensor once. Medians of {rounds} rounds. Core seconds: what all processes of this machine, which has "
            f"{psutil.cpu_count()} cores, used in a round; where workers come back at once, nearly all of it comes "
            "after the sleep."
        ],
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """The seconds of a round, and the seconds that all cores were busy in it."""

    seconds: float
    core_seconds: float


def _megabytes(sizes: Sizes, siblings: int) -> float:
    """Return the MB that a work unit puts into the object store: states, last latents and the teacher's image.

    Siblings share the states before the step that explores, and those after the next one are not sent.
    """
    states = (np.mean([sizes.explored(round) + 1 for round in range(sizes.steps - 1)]) + siblings) * np.prod(
        sizes.latent
    )
    last = siblings * np.prod(sizes.latent) * np.dtype(sizes.dtype).itemsize
    return float(4 * states + last + np.prod(sizes.image) * np.dtype(sizes.image_dtype).itemsize) / 1e6


def _measure(
    root: Path, stop: StopRequest, workers: int, units: int, sizes: Sizes, siblings: int, rounds: int
) -> _Measured:
    config = recipe(
        root,
        "scaling",
        f"rollout.max_workers={workers}",
        f"rollout.groups={units}",
        "rollout.unit_groups=1",
        f"rollout.siblings={siblings}",
        f"learner.rounds={rounds + 1}",
        f"reward.max_workers={workers}",
    )
    started = processes(sizes, workers)
    roles = [spread(started, role, workers) for role in ("rollout", "reward")]
    coordinator, others = simulated_coordinator(root, config, *roles)
    ray.get([process.ready.remote() for process in started])
    seconds: list[float] = []
    for round in range(rounds + 1):
        stop.check()
        began = time.perf_counter()
        if round == 1:  # the first warms up
            psutil.cpu_percent()
        data = fetched(partial(coordinator.round_for.remote, round, 0, 1))
        touched = sum(float(t.shared[..., 0].sum() + t.latents[..., 0].sum()) for t, _ in data.parts.values())
        assert touched == 0 and len(data.parts) == units
        del data
        if round:
            seconds.append(time.perf_counter() - began)
    busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    for actor in [*started, coordinator, *others]:
        ray.kill(actor)
    return _Measured(float(np.median(seconds)), busy * float(np.mean(seconds)))


def simulated_coordinator(
    root: Path, config: Config, rollout: list[Simulated], reward: list[Simulated]
) -> tuple[Any, tuple[Any, ...]]:
    """Return the real coordinator of simulated workers, and its other actors."""
    folder = root / config.run.name
    folder.mkdir(exist_ok=True)
    conditions = factory.conditions(config, load_teacher(config.teacher))
    (folder / CONDITIONS).write_text(conditions.to_json())
    writer = ray.remote(MetricsWriter).options(num_cpus=0).remote(str(folder), None, "benchmark", "scaling", None)
    weights = ray.remote(WeightStore).options(num_cpus=0).remote()
    handles = cloudpickle.dumps((weights, writer, rollout, reward))
    kind = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=100)
    return kind.remote(config, str(folder), handles), (writer, weights)
