"""A pool of equal workers: each takes the most urgent piece of work, and what one left undone another does again."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from redif_ray.pipeline.causes import cause
from redif_ray.pipeline.faults import ATTEMPTS
from redif_ray.types import Meta

log = logging.getLogger(__name__)
BACK_SECONDS = 600  # that a lost worker gets to load again, where Ray finds room for it
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
    """Hands work to workers and keeps count of what each did and how long it was busy.

    lost: told the role of each worker that was lost in the middle of a call. A call that takes longer than `timeout`
    seconds is lost too: its worker is killed, and Ray starts it again. done: told of each piece of work.
    """

    def __init__(
        self, role: str, workers: list[Any], lost: Callable[[str], object], timeout: float | None = None,
        done: Callable[[Meta], object] = lambda _: None,
    ) -> None:
        self.role, self.workers, self.lost, self.timeout, self.done = role, workers, lost, timeout, done
        self.calls: asyncio.PriorityQueue[Call] = asyncio.PriorityQueue()
        self.tickets = count()
        self.serving: list[asyncio.Task[None]] = []
        self.busy: dict[str, float] = defaultdict(float)
        self.shards: dict[str, int] = defaultdict(int)
        self.left = len(workers)
        self.in_flight = 0
        self.failure: RayError | None = None  # once nobody is left

    async def call(self, urgency: Urgency, method: str, *arguments: Any) -> tuple[Meta, Any]:
        """(meta, reference to the data): only the meta is fetched here.

        A worker that dies is restarted by Ray and the work done again, by whoever is free: the arguments say all that
        matters, so the result is the same. Errors raised by the work itself are not retried.
        """
        if self.failure is not None:
            raise self.failure
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
            self.in_flight += 1
            try:
                method = getattr(worker, call.method).options(num_returns=2, max_task_retries=0)  # another may be free
                meta_ref, data_ref = method.remote(*call.arguments)
                meta: Meta = await asyncio.wait_for(meta_ref, self.timeout)
                self.in_flight -= 1
            except Exception as error:
                self.in_flight -= 1
                if isinstance(error, RayActorError | TimeoutError) and not isinstance(error, RayTaskError):
                    if isinstance(error, TimeoutError):
                        ray.kill(worker, no_restart=False)
                    self._again(call, error)
                    if not await self._back(worker):
                        return
                elif not call.answer.done():  # the work's own, be it that another actor is gone: for whoever asked
                    call.answer.set_exception(error)
            else:
                self.shards[meta.worker] += 1
                self.busy[meta.worker] += sum(w.seconds for w in meta.work)
                self.done(meta)
                if not call.answer.done():
                    call.answer.set_result((meta, data_ref))

    def _again(self, call: Call, error: Exception) -> None:
        self.lost(self.role)
        call.attempts += 1
        if call.attempts < ATTEMPTS:
            log.warning("a %s worker was lost (%s); its shard is done again", self.role, type(error).__name__)
            self.calls.put_nowait(call)
        elif not call.answer.done():
            call.answer.set_exception(RayError(
                f"{call.method} on the {self.role} workers was lost {ATTEMPTS} times; see their logs"
                + (f", and where it is only slow raise pipeline.timeout_s={self.timeout:g}" if self.timeout else "")
            ))

    async def _back(self, worker: Any) -> bool:
        """Whether a lost worker is there again."""
        try:
            await asyncio.wait_for(self._ready(worker), BACK_SECONDS)
        except Exception as error:  # no room, or it cannot load, or not where it is now: said when nobody is left
            self.left -= 1
            log.warning("a %s worker did not come back (%r); %d are left", self.role, cause(error), self.left)
            if not self.left:
                self._give_up(error)
            return False
        return True

    async def _ready(self, worker: Any) -> None:
        while True:
            await asyncio.sleep(0.2)
            try:
                await worker.ready.remote()
                return
            except ActorUnavailableError:
                continue

    def _give_up(self, error: Exception) -> None:
        """Nobody is left: whoever waits, or asks from now on, is told."""
        self.failure = RayError(
            f"the last {self.role} worker was lost and did not come back ({cause(error)!r}); continue with --resume"
        )
        while not self.calls.empty():
            call = self.calls.get_nowait()
            if not call.answer.done():
                call.answer.set_exception(self.failure)
