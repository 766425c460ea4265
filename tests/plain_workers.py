"""Workers and a coordinator that are plain objects: what they are asked, and what they raise, is seen from outside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle

from redif_ray.config import load
from redif_ray.coordinator.coordinator import Coordinator
from redif_ray.data.conditions import CONDITIONS, Conditions
from redif_ray.types import Meta, Work, WorkUnit

ids = count()


@dataclass(frozen=True)
class Reference:
    name: str

    def hex(self) -> str:
        return self.name


@dataclass(eq=False)
class Worker:
    """Does whatever it is asked; `calls` lists (method, unit) of it, `errors` what a method raises, first to last."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    errors: dict[str, list[Exception]] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)  # its calls among those of others
    made: list[Any] = field(default_factory=list)  # references to answer with, before those that are made up
    work: tuple[Work, ...] = ()  # that each call says it did
    rested: int = 0  # times that it was told to free its device

    @property
    def ready(self) -> Any:
        return SimpleNamespace(remote=self._name)

    async def _name(self) -> str:
        return "worker"

    @property
    def rest(self) -> Any:
        return SimpleNamespace(remote=self._rest)

    async def _rest(self) -> None:
        self.rested += 1

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        return Method(self, method)


@dataclass
class Method:
    worker: Worker
    name: str
    products: int = 1  # that a call returns beside the meta

    def options(self, num_returns: int, max_task_retries: int) -> Method:
        return Method(self.worker, self.name, num_returns - 1)

    def remote(self, unit: WorkUnit, *_: Any) -> tuple[Any, ...]:
        async def meta() -> Meta:
            await asyncio.sleep(0)
            self.worker.calls.append((self.name, unit.index))
            self.worker.order.append((self.name, unit.index))
            if errors := self.worker.errors.get(self.name):
                raise errors.pop(0)
            return Meta(unit, "worker", self.worker.work)

        def product() -> Any:
            made = self.worker.made
            return made.pop(0) if made else Reference(f"{self.name}-{unit.index}-{next(ids)}")

        return meta(), *(product() for _ in range(self.products))


class Writer:
    def __init__(self) -> None:
        self.noted: list[str] = []

    @property
    def lost(self) -> Any:
        return self

    def remote(self, what: str) -> None:
        self.noted.append(what)


def coordinator(folder: Path, *overrides: str, captions: bool = False) -> Coordinator:
    (folder / CONDITIONS).write_text(Conditions((None,), (None,)).to_json())
    order: list[tuple[str, int]] = []
    handles = (None, Writer(), [Worker(order=order)], [Worker(order=order)])
    config = load("smoke", ["rollout.unit_groups=2", *overrides])
    return Coordinator(config, str(folder), cloudpickle.dumps(handles), captions)
