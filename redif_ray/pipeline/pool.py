"""A pool of equal workers: each takes the most urgent piece of work, and what one left undone another does again."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayActorError

from redif_ray.types import Meta

log = logging.getLogger(__name__)
ATTEMPTS = 5
Urgency = tuple[int, int]  # smallest first; equals in the order of their calls


@dataclass(order=True, slots=True)
class Call:
    urgency: Urgency
    ticket: int
    method: str = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    answer: asyncio.Future[tuple[Meta, Any]] = field(compare=False)
    attempts: int = field(default=0, compare=False)


class Pool:
    """Hands work to workers and keeps count of what each did, how long it was busy and how often one was lost."""

    def __init__(self, role: str, workers: list[Any]) -> None:
        self.role, self.workers = role, workers
        self.calls: asyncio.PriorityQueue[Call] = asyncio.PriorityQueue()
        self.tickets = count()
        self.serving: list[asyncio.Task[None]] = []
        self.busy: dict[str, float] = defaultdict(float)
        self.shards: dict[str, int] = defaultdict(int)
        self.lost = 0

    async def call(self, urgency: Urgency, method: str, *arguments: Any) -> tuple[Meta, Any]:
        """(meta, reference to the data): only the meta is fetched here.

        A worker that dies is restarted by Ray and the work done again, by whoever is free: the arguments say all that
        matters, so the result is the same. Errors raised by the work itself are not retried.
        """
        if not self.serving:
            self.serving = [asyncio.ensure_future(self._serve(worker)) for worker in self.workers]
        answer: asyncio.Future[tuple[Meta, Any]] = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(Call(urgency, next(self.tickets), method, arguments, answer))
        return await answer

    async def _serve(self, worker: Any) -> None:
        while True:
            call = await self.calls.get()
            if call.answer.done():  # whoever asked was cancelled
                continue
            try:
                meta_ref, data_ref = getattr(worker, call.method).options(num_returns=2).remote(*call.arguments)
                meta: Meta = await meta_ref
            except RayActorError as error:
                await self._again(call, error)
            except Exception as error:  # the work's own: for whoever asked
                if not call.answer.done():
                    call.answer.set_exception(error)
            else:
                self.shards[meta.worker] += 1
                self.busy[meta.worker] += sum(w.seconds for w in meta.work)
                if not call.answer.done():
                    call.answer.set_result((meta, data_ref))

    async def _again(self, call: Call, error: RayActorError) -> None:
        self.lost += 1
        call.attempts += 1
        if call.attempts < ATTEMPTS:
            log.warning("a %s worker was lost (%s); its shard is done again", self.role, type(error).__name__)
            await asyncio.sleep(0.2)
            self.calls.put_nowait(call)
        elif not call.answer.done():
            call.answer.set_exception(ray.exceptions.RayError(
                f"{call.method} on the {self.role} workers was lost {ATTEMPTS} times; see their logs"
            ))
