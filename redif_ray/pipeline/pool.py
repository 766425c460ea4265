"""A pool of equal workers: each piece of work goes to one that is free, and to another if that one dies."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

import ray
from ray.exceptions import RayActorError

from redif_ray.types import Meta

log = logging.getLogger(__name__)
ATTEMPTS = 5


class Pool:
    """Hands work to workers and keeps count of what each did, how long it was busy and how often one was lost."""

    def __init__(self, role: str, workers: list[Any]) -> None:
        self.role = role
        self.free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in workers:
            self.free.put_nowait(worker)
        self.busy: dict[str, float] = defaultdict(float)
        self.shards: dict[str, int] = defaultdict(int)
        self.lost = 0

    async def call(self, method: str, *args: Any) -> tuple[Meta, Any]:
        """(meta, reference to the data): only the meta is fetched here.

        A worker that dies is restarted by Ray and the work done again, by whoever is free: the arguments say all that
        matters, so the result is the same. Errors raised by the work itself are not retried.
        """
        for _ in range(ATTEMPTS):
            worker = await self.free.get()
            try:
                meta_ref, data_ref = getattr(worker, method).options(num_returns=2).remote(*args)
                meta: Meta = await meta_ref
            except RayActorError as error:
                self.lost += 1
                log.warning("a %s worker was lost (%s); its shard is done again", self.role, type(error).__name__)
                await asyncio.sleep(0.2)
                continue
            finally:
                self.free.put_nowait(worker)
            self.shards[meta.worker] += 1
            self.busy[meta.worker] += sum(w.seconds for w in meta.work)
            return meta, data_ref
        raise ray.exceptions.RayError(f"{method} on the {self.role} workers was lost {ATTEMPTS} times; see their logs")
