"""Measure how busy the GPUs of a run are: the real coordinator, with workers and ranks that sleep for counted seconds.

A GPU computes for one process at a time, so the processes of a shared one wait for each other. Tensors are small: on a
cluster each node writes its own, which the part `scaling` measures.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console

from benchmarks.pipeline.scaling import FASHION_MNIST, simulated_coordinator
from benchmarks.pipeline.simulated import PROCESSES, Simulated, Sleepers, spread
from benchmarks.short_runs import recipe
from benchmarks.suite import Part
from redif_ray.cluster.connect import connect
from redif_ray.config import Config
from redif_ray.faults import fetched
from redif_ray.interrupt import StopRequest
from redif_ray.types import Meta, Scored, Trajectories, WorkUnit

GROUPS = 8  # of the counted round
TFLOPS = 400.0  # TFLOP a second of one GPU, 40 % of what an H100 could do in 16 bits: assumed
BUS_GB = 10.0  # GB a second between GPU and host memory: assumed
HEAD = ["model", "GPUs", "set", "seconds a round", "with all GPUs busy", "busy"]


@dataclass(frozen=True, slots=True)
class Counted:
    """TFLOP of a round of 8 groups of the model's recipe, by part, and GB of weights that each process moves."""

    model: str
    rollout: float
    decode: float
    teacher: float
    update: float
    weights: float

    @property
    def round(self) -> float:
        return self.rollout + self.decode + self.teacher + self.update


MODELS = (
    Counted("SD1.5", rollout=835, decode=342, teacher=643, update=1890, weights=1.7),
    Counted("SDXL", rollout=2001, decode=1089, teacher=2704, update=4326, weights=5.1),
    Counted("SD3.5-medium", rollout=3330, decode=1089, teacher=5040, update=7200, weights=5.0),
)


@dataclass(frozen=True, slots=True)
class Split:
    """The numbers of workers and ranks.

    beside: whether each GPU holds one of every role. turns: whether weights leave the GPU while others compute.
    """

    name: str
    rollout: int
    reward: int
    ranks: int
    beside: bool = False
    turns: bool = False
    staleness: int = 0

    @property
    def settings(self) -> str:
        return f"pipeline={{colocate: {str(self.turns).lower()}, staleness: {self.staleness}}}"


def splits(gpus: int) -> dict[str, Split]:
    """Return ways to use some GPUs, by a short name: apart by the shares that docs/operations.md names, or shared."""
    every = partial(Split, rollout=gpus, reward=gpus, ranks=gpus, beside=True)
    shared = {
        "turns": every("shared in turns, `pipeline.colocate=true`", turns=True),
        "shared": every("shared"),
        "shared_1": every("shared, `pipeline.staleness=1`", staleness=1),
    }
    if gpus < 3:
        return shared
    workers = gpus * 3 // 8
    apart = partial(Split, rollout=workers, reward=workers, ranks=gpus - 2 * workers)
    return {"apart": apart("apart"), "apart_1": apart("apart, `pipeline.staleness=1`", staleness=1)} | shared


class Gpus(Sleepers):
    """Workers and ranks that sleep for counted seconds while they hold their GPU."""

    def __init__(self, counted: Counted, split: Split) -> None:
        super().__init__(replace(FASHION_MNIST, seconds=0.0))
        self.counted, self.split = counted, split
        self.gpus: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.resting: set[str] = set()

    def targets(self, name: str, unit: WorkUnit, block: WorkUnit | None = None) -> tuple[Meta, np.ndarray]:
        self._work(name, self.counted.teacher, len(unit.groups))
        return super().targets(name, unit)

    def rollout(self, name: str, unit: WorkUnit, weights: Any, key: str) -> tuple[Meta, Trajectories, np.ndarray]:
        self._work(name, self.counted.rollout, len(unit.groups))
        return super().rollout(name, unit, weights, key)

    def score(self, name: str, unit: WorkUnit, *given: Any) -> tuple[Meta, Scored]:
        self._work(name, self.counted.decode, len(unit.groups))
        return super().score(name, unit, *given)

    def update(self, name: str, groups: int) -> None:
        """Compute a rank's part of an update, and leave the GPU after it where roles take turns."""
        for _ in range(groups):
            self._work(name, self.counted.update, 1)
        self.rest(name)

    def rest(self, name: str) -> None:
        if self.split.turns and name not in self.resting:
            self._hold(name, self.counted.weights / BUS_GB)
            self.resting.add(name)

    def _work(self, name: str, tflop: float, groups: int) -> None:
        if name in self.resting:
            self._hold(name, self.counted.weights / BUS_GB)
            self.resting.discard(name)
        self._hold(name, tflop / TFLOPS / GROUPS * groups)

    def _hold(self, name: str, seconds: float) -> None:
        gpu = name.rpartition("-")[2] if self.split.beside else name
        with self.gpus[gpu]:
            time.sleep(seconds)


def cards(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    models: Sequence[Counted] = MODELS,
    numbers_of_gpus: Sequence[int] = (1, 8, 64),
    groups: int = 3,
    rounds: int = 2,
) -> Part:
    """groups: of a round, for each GPU. rounds: after the first, which is not measured."""
    rows, numbers = [], {}
    with connect(recipe(root, "cards")):
        for counted in models:
            best = counted.round / TFLOPS / GROUPS * groups
            for gpus in numbers_of_gpus:
                for short, split in splits(gpus).items():
                    seconds = _measure(root, stop, counted, split, groups * gpus, rounds)
                    numbers[f"{counted.model}_{gpus}_{short}"] = best / seconds
                    row = [counted.model, str(gpus), split.name, f"{seconds:.2f}", f"{best:.2f}"]
                    rows.append([*row, f"{100 * best / seconds:.0f} %"])
                    console.print(rows[-1])
    return Part(
        "cards",
        "How busy GPUs are, simulated",
        HEAD,
        rows,
        numbers,
        [
            f"Rounds of {groups} groups a GPU, means of {rounds} after the first. Workers and ranks sleep for counted "
            f"TFLOP at {TFLOPS:g} TFLOP/s, and in turns while weights leave a GPU and come back, at {BUS_GB:g} GB/s, "
            "which does not count as busy; the coordinator is the real one. Nothing here ran on a GPU."
        ],
    )


def _measure(root: Path, stop: StopRequest, counted: Counted, split: Split, groups: int, rounds: int) -> float:
    """Return the seconds of a round."""
    config = _config(root, split, groups, rounds)
    most = max(split.rollout, split.reward, split.ranks)
    kind = ray.remote(Gpus).options(num_cpus=0, max_concurrency=3 * -(-most // PROCESSES) + 2)
    started = [kind.remote(counted, split) for _ in range(min(PROCESSES, most))]
    workers = [spread(started, role, number) for role, number in (("rollout", split.rollout), ("reward", split.reward))]
    ranks = spread(started, "learner", split.ranks)
    coordinator, others = simulated_coordinator(root, config, *workers)
    try:
        for round in range(rounds + 1):
            stop.check()
            if round == 1:
                began = time.perf_counter()
            fetched(partial(coordinator.round_for.remote, round, 0, 1))
            _update(ranks, groups)
        return (time.perf_counter() - began) / rounds
    finally:
        for actor in [*started, coordinator, *others]:
            ray.kill(actor)


def _config(root: Path, split: Split, groups: int, rounds: int) -> Config:
    """Return the configuration of the rounds; with staleness there are more of them, made ahead, than are measured."""
    return recipe(
        root,
        "cards",
        f"rollout={{max_workers: {split.rollout}, groups: {groups}, unit_groups: 1}}",
        f"reward.max_workers={split.reward}",
        f"learner.rounds={rounds + 2 + split.staleness}",
        split.settings,
        "teacher.batch=1",
    )


def _update(ranks: list[Simulated], groups: int) -> None:
    """Have each rank update on its share of the groups, and wait for all."""
    share = [groups // len(ranks) + (i < groups % len(ranks)) for i in range(len(ranks))]
    ray.get([rank.update.remote(count) for rank, count in zip(ranks, share, strict=True)])
