"""Measure how busy the cards of a run are: the real coordinator, with workers and ranks that sleep for counted seconds.

Seconds are counted TFLOP of a round of 8 groups over an assumed rate. A card computes for one process at a time, so the
processes of a shared card wait for each other as they would on a GPU. Tensors are small: on a cluster each node
writes its own, which the part `scaling` measures.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console

from benchmarks.pipeline.scaling import FASHION_MNIST, simulated_coordinator
from benchmarks.pipeline.simulated import PROCESSES, Sleepers, spread
from benchmarks.short_runs import recipe
from benchmarks.suite import Part
from redif_ray.cluster.connect import connect
from redif_ray.faults import fetched
from redif_ray.interrupt import StopRequest
from redif_ray.types import Meta, Scored, Trajectories, WorkUnit

GROUPS = 8  # of the counted round
TFLOPS = 400.0  # a second of one card, 40 % of what an H100 could do in 16 bits: assumed
BUS_GB = 10.0  # a second between host and card, from memory that is not pinned: assumed
HEAD = ["model", "cards", "set", "seconds a round", "all cards busy, at best", "busy"]


@dataclass(frozen=True, slots=True)
class Counted:
    """TFLOP of a round of 8 groups, by part, and GB of weights that each process moves in its turn."""

    model: str
    rollout: float
    decode: float
    teacher: float
    update: float
    weights: float

    def seconds(self, tflop: float) -> float:
        """Return the seconds that one group takes."""
        return tflop / TFLOPS / GROUPS


MODELS = (
    Counted("SD1.5", 835, 342, 643, 1890, 1.7),
    Counted("SDXL", 2001, 1089, 2704, 4326, 5.1),
    Counted("SD3.5-medium", 3330, 1089, 5040, 7200, 5.0),
)


@dataclass(frozen=True, slots=True)
class Split:
    """Cards of each role, or all cards for every role, in turns."""

    name: str
    rollout: int
    reward: int
    ranks: int
    shared: bool = False
    staleness: int = 0

    @property
    def short(self) -> str:
        return "turns" if self.shared else f"apart_{self.staleness}"


def splits(cards: int) -> tuple[Split, ...]:
    """Return the ways to use some cards: in turns, and apart by the thirds that operations.md names."""
    turns = Split("in turns, `pipeline.colocate`", cards, cards, cards, shared=True)
    if cards < 3:
        return (turns,)
    third, rest = round(cards * 3 / 8), cards - 2 * round(cards * 3 / 8)
    apart = partial(Split, rollout=third, reward=third, ranks=rest)
    return apart("apart"), apart("apart, `pipeline.staleness=1`", staleness=1), turns


class Cards(Sleepers):
    """Workers that sleep for counted seconds while they hold their card, and count the seconds by kind of work."""

    def __init__(self, counted: Counted, shared: bool) -> None:
        super().__init__(FASHION_MNIST)
        self.counted, self.shared = counted, shared
        self.cards: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.resting: set[str] = set()
        self.worked = 0.0

    def targets(self, name: str, unit: WorkUnit, block: WorkUnit | None = None) -> tuple[Meta, np.ndarray]:
        self._work(name, self.counted.teacher * len(unit.groups))
        return super().targets(name, unit)

    def rollout(self, name: str, unit: WorkUnit, weights: Any, key: str) -> tuple[Meta, Trajectories, np.ndarray]:
        self._work(name, self.counted.rollout * len(unit.groups))
        return super().rollout(name, unit, weights, key)

    def score(self, name: str, unit: WorkUnit, *given: Any) -> tuple[Meta, Scored]:
        self._work(name, self.counted.decode * len(unit.groups))
        return super().score(name, unit, *given)

    def rest(self, name: str) -> None:
        if self.shared and name not in self.resting:
            self._hold(name, self.counted.weights / BUS_GB)
            self.resting.add(name)

    def busy(self) -> float:
        """Return the seconds of work since the last call."""
        worked, self.worked = self.worked, 0.0
        return worked

    def _work(self, name: str, tflop: float) -> None:
        if name in self.resting:
            self._hold(name, self.counted.weights / BUS_GB)
            self.resting.discard(name)
        seconds = self.counted.seconds(tflop)
        self._hold(name, seconds)
        self.worked += seconds

    def _hold(self, name: str, seconds: float) -> None:
        with self.cards[name.rpartition("-")[2] if self.shared else name]:
            time.sleep(seconds)


def cards(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    models: Sequence[Counted] = MODELS,
    numbers_of_cards: Sequence[int] = (1, 8, 64),
    groups: int = 3,
    rounds: int = 2,
) -> Part:
    """groups: of a round, for each card."""
    rows, numbers = [], {}
    with connect(recipe(root, "cards")):
        for counted in models:
            for count in numbers_of_cards:
                for split in splits(count):
                    busy, seconds = _measure(root, stop, counted, split, count, groups * count, rounds)
                    best = counted.seconds(counted.rollout + counted.decode + counted.teacher + counted.update) * groups
                    numbers[f"{counted.model}_{count}_{split.short}"] = busy
                    rows.append(
                        [counted.model, str(count), split.name, f"{seconds:.2f}", f"{best:.2f}", f"{100 * busy:.0f} %"]
                    )
                    console.print(rows[-1])
    return Part(
        "cards",
        "How busy cards are, simulated",
        HEAD,
        rows,
        numbers,
        [
            f"Rounds of {groups} groups a card, means of {rounds} after the first. Workers and ranks sleep for counted "
            f"TFLOP at {TFLOPS:g} TFLOP/s, and while weights leave a shared card and come back, at {BUS_GB:g} GB/s, "
            "which does not count as busy; the coordinator is the real one. Nothing here ran on a GPU."
        ],
    )


def _measure(
    root: Path, stop: StopRequest, counted: Counted, split: Split, count: int, groups: int, rounds: int
) -> tuple[float, float]:
    """Return the share of all cards' time that is work, and the seconds of a round."""
    config = recipe(
        root,
        f"cards-{counted.model}-{count}-{split.short}",
        f"rollout={{max_workers: {split.rollout}, groups: {groups}, unit_groups: 1}}",
        f"reward.max_workers={split.reward}",
        f"learner={{rounds: {rounds + 2}, workers: {split.ranks}}}",
        f"pipeline={{colocate: {str(split.shared).lower()}, staleness: {split.staleness}}}",
        "teacher.batch=1",
    )
    workers = max(split.rollout, split.reward)
    started = [
        ray.remote(Cards)
        .options(num_cpus=0, max_concurrency=2 * -(-workers // PROCESSES) + 2)
        .remote(counted, split.shared)
        for _ in range(min(PROCESSES, workers))
    ]
    roles = [spread(started, role, number) for role, number in (("rollout", split.rollout), ("reward", split.reward))]
    coordinator, others = simulated_coordinator(root, config, *roles)
    update = counted.seconds(counted.update) * groups / split.ranks
    move = counted.weights / BUS_GB if split.shared else 0.0
    try:
        for round in range(rounds + 1):
            stop.check()
            if round == 1:  # the first warms up
                ray.get([process.busy.remote() for process in started])
                began = time.perf_counter()
            fetched(partial(coordinator.round_for.remote, round, 0, 1))
            time.sleep(update + 2 * move)
        seconds = time.perf_counter() - began
        worked = sum(ray.get([process.busy.remote() for process in started])) + rounds * update * split.ranks
    finally:
        for actor in [*started, coordinator, *others]:
            ray.kill(actor)
    return worked / (count * seconds), seconds / rounds
