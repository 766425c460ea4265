"""Workers that sleep for their compute time and return tensors of real size: many of them fit on one machine.

Several share a process, each call in a thread of its own; what they return goes through Ray's object store as it would.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from redif_ray.types import Meta, Scored, Trajectories, Work, WorkUnit

PROCESSES = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a latent and of an image of `model`, and the seconds that the rollout of a work unit takes."""

    model: str
    latent: tuple[int, ...]
    image: tuple[int, ...]
    steps: int
    seconds: float
    dtype: type[np.floating[Any]] = np.float32  # of last latents on their way
    image_dtype: type[np.generic] = np.float32

    def explored(self, round: int) -> int:
        """Return the step at which a round explores, as with `exploration.one_step`; the last step never does."""
        return round % (self.steps - 1)


class Sleepers:
    """A process of simulated workers."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def ready(self, name: str = "") -> str:
        return name

    def targets(self, name: str, unit: WorkUnit, block: WorkUnit | None = None) -> tuple[Meta, np.ndarray]:
        return self._did(name, unit, 0.0), np.zeros((len(unit.groups), *self.sizes.image), self.sizes.image_dtype)

    def rollout(self, name: str, unit: WorkUnit, weights: Any, key: str) -> tuple[Meta, Trajectories, np.ndarray]:
        s = self.sizes
        time.sleep(s.seconds)
        before = s.explored(unit.round) + 1
        made = Trajectories(
            unit,
            int(key.rpartition("-")[2]),
            "simulated",
            np.zeros((before, len(unit.groups), *s.latent), np.float32),
            np.zeros((1, unit.rows, *s.latent), np.float32),
            np.zeros((s.steps, unit.rows), np.float32),
            None,
        )
        return self._did(name, unit, s.seconds), made, np.zeros((unit.rows, *s.latent), s.dtype)

    def score(
        self, name: str, unit: WorkUnit, final: np.ndarray, trajectories: None, targets: np.ndarray, *_: Any
    ) -> tuple[Meta, Scored]:
        terms = {"mse": np.zeros(unit.rows, np.float32)}
        meta = Meta(unit, name, (Work("rewards", 0.0, 0),), terms)
        return meta, Scored(unit, terms, None, None)

    def _did(self, name: str, unit: WorkUnit, seconds: float) -> Meta:
        return Meta(unit, name, (Work("rollout", seconds, 0),))


@dataclass(frozen=True, slots=True)
class Simulated:
    """One worker among those of a process; called as a handle of an actor is."""

    process: Any
    name: str

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        return _Method(getattr(self.process, method), (self.name,))


@dataclass(frozen=True, slots=True)
class _Method:
    method: Any
    first: tuple[str, ...]

    def options(self, **options: Any) -> _Method:
        return _Method(self.method.options(**options), self.first)

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(*self.first, *arguments)


def processes(sizes: Sizes, workers: int) -> list[Any]:
    """`PROCESSES` processes, or as many as there are workers, with a thread for each of theirs."""
    count = min(PROCESSES, workers)
    kind = ray.remote(Sleepers).options(num_cpus=0, max_concurrency=2 * -(-workers // count) + 1)
    return [kind.remote(sizes) for _ in range(count)]


def spread(started: list[Any], role: str, workers: int) -> list[Simulated]:
    return [Simulated(started[i % len(started)], f"{role}-{i}") for i in range(workers)]
