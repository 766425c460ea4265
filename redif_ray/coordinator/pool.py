"""A pool of equal workers: each takes the most urgent piece of work, and what one left undone another does again.

Workers come and go. One that is not there yet, or no more, waits for as long as it takes, and takes no work meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from redif_ray.faults import ATTEMPTS, cause
from redif_ray.types import Meta

log = logging.getLogger(__name__)
BACK_SECONDS = 600  # that a pool with too few workers gets until it has enough of them again
PAUSE_SECONDS = 0.2  # before a worker that was lost is asked whether it is back
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
    """Hands work to workers and keeps count of what each did and how long it was there and busy.

    lost: told the role of each worker that was lost in the middle of a call. A call that takes longer than `timeout`
    seconds is lost too: its worker is killed, and Ray starts it again. done: told of each piece of work.
    least: how many must be there; the pool gives up where fewer are for `BACK_SECONDS`, or can ever be.
    """

    def __init__(
        self,
        role: str,
        workers: list[Any],
        lost: Callable[[str], object],
        timeout: float | None = None,
        done: Callable[[Meta], object] = lambda _: None,
        least: int = 1,
    ) -> None:
        self.role, self.workers, self.lost, self.timeout, self.done = role, list(workers), lost, timeout, done
        self.least = least
        self.calls: asyncio.PriorityQueue[Call] = asyncio.PriorityQueue()
        self.tickets = count()
        self.serving: list[asyncio.Task[None]] = []
        self.here: dict[Any, tuple[str, float]] = {}  # by worker: its name, and since when
        self.loaded = set(workers)  # that were there once
        self.earlier: dict[str, float] = defaultdict(float)  # seconds that a worker was there, before it went
        self.busy: dict[str, float] = defaultdict(float)
        self.units: dict[str, int] = defaultdict(int)
        self.left = len(workers)  # that are there, or may still come
        self.losses = 0
        self.in_flight = 0
        self.why: Exception | None = None  # the last was lost, or does not come
        self.ending: asyncio.TimerHandle | None = None  # while too few are there
        self.failure: RayError | None = None  # once the pool has given up

    def join(self, worker: Any) -> None:
        """One more worker, there or on its way; one that is known is left as it is."""
        if worker not in self.workers:
            self.workers.append(worker)
            self.left += 1
            if self.serving:
                self.serving.append(asyncio.ensure_future(self._serve(worker)))

    def there(self) -> dict[str, float]:
        """Seconds that each worker was there, by its name."""
        now, found = time.monotonic(), dict(self.earlier)
        for name, since in self.here.values():
            found[name] = found.get(name, 0.0) + now - since
        return found

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

    async def rest(self) -> None:
        """Have every worker that is there leave its device to others, once its call is done."""
        answers = await asyncio.gather(*(worker.rest.remote() for worker in self.here), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RayActorError):  # with whom all it had went
                raise answer

    async def _serve(self, worker: Any) -> None:
        answered: int | None = None  # losses of the pool when the worker last said that it is there
        while True:
            if answered != self.losses:  # new here, or lost, or with others that were: those of a node go together
                answered = self.losses
                if not await self._arrival(worker):
                    return
            call = await self.calls.get()
            if call.answer.done():  # whoever asked was cancelled
                continue
            if answered != self.losses:  # while this one waited for work
                self.calls.put_nowait(call)
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
                    self._gone(worker, error)
                    await asyncio.sleep(PAUSE_SECONDS)
                elif not call.answer.done():  # the work's own, be it that another actor is gone: for whoever asked
                    call.answer.set_exception(error)
            else:
                self.units[meta.worker] += 1
                self.busy[meta.worker] += sum(w.seconds for w in meta.work)
                self.done(meta)
                if not call.answer.done():
                    call.answer.set_result((meta, data_ref))

    def _again(self, call: Call, error: Exception) -> None:
        self.lost(self.role)
        self.losses += 1
        call.attempts += 1
        if call.attempts < ATTEMPTS:
            log.warning("a %s worker was lost (%s); its work unit is done again", self.role, type(error).__name__)
            self.calls.put_nowait(call)
        elif not call.answer.done():
            call.answer.set_exception(
                RayError(
                    f"{call.method} on the {self.role} workers was lost {ATTEMPTS} times; see their logs"
                    + (f", and where it is only slow raise pipeline.timeout_s={self.timeout:g}" if self.timeout else "")
                )
            )

    async def _arrival(self, worker: Any) -> bool:
        """Wait until a worker is there, as long as it takes. False: it never will be."""
        self._gone(worker)
        patience = self.timeout if worker in self.loaded else None  # another may be on its way for as long as it takes
        while True:
            try:
                name = await asyncio.wait_for(worker.ready.remote(), patience)
            except TimeoutError:  # it stands still, or has no room; once, for it may load longer than it works
                log.warning("a %s worker does not answer and is started again", self.role)
                self.lost(self.role)
                ray.kill(worker, no_restart=False)
                patience = None
            except ActorUnavailableError as error:
                self.why = error
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception as error:  # it cannot load, or not where it is now, or was told to leave
                self.why = error
                self.left -= 1
                log.warning("a %s worker does not come (%r); %d are left", self.role, cause(error), self.left)
                if self.left < self.least:
                    self._give_up()
                return False
            else:
                self.here[worker] = (name, time.monotonic())
                self.loaded.add(worker)
                if self.ending is not None and len(self.here) >= self.least:
                    self.ending.cancel()
                    self.ending = None
                return True

    def _gone(self, worker: Any, why: Exception | None = None) -> None:
        """Until it is there again."""
        self.why = why or self.why
        if worker in self.here:
            name, since = self.here.pop(worker)
            self.earlier[name] += time.monotonic() - since
        if self.ending is None and len(self.here) < self.least:
            self.ending = asyncio.get_running_loop().call_later(BACK_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Too few are left: whoever waits, or asks from now on, is told."""
        why = f" ({cause(self.why)!r})" if self.why else ""
        self.failure = RayError(
            f"{len(self.here)} {self.role} workers are there, and {self.least} needed; the others were lost and did "
            f"not come back{why}; continue with --resume"
        )
        while not self.calls.empty():
            call = self.calls.get_nowait()
            if not call.answer.done():
                call.answer.set_exception(self.failure)
