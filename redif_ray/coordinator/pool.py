"""A pool of equal workers: each takes the most urgent call, and the call of a lost worker is repeated by another.

Workers come and go. The pool waits as long as it takes for a worker that is not up, and gives it no calls meanwhile.
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
BACK_SECONDS = 600  # time for a pool with too few workers to have enough of them again
PRODUCTS = {"rollout": 2}  # number of objects that a method returns beside the meta, where it is not 1
PAUSE_SECONDS = 0.2  # pause before a lost worker is asked whether it is back
Urgency = tuple[int, int]  # the smallest comes first; equal ones in the order of their calls


@dataclass(order=True, slots=True)
class Call:
    """A call that waits for a worker, ordered by urgency and then by ticket."""

    urgency: Urgency
    ticket: int
    method: str = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    answer: asyncio.Future[tuple[Any, ...]] = field(compare=False)
    attempts: int = field(default=0, compare=False)


class Pool:
    """Hands calls to workers and counts each worker's work units, and its seconds up and busy.

    role: name of the workers' role. lost: function called with the role when a worker is lost during a call.
    timeout: seconds after which a call counts as lost: its worker is killed, and Ray restarts it; None: no limit.
    done: function called with the meta of each finished call. least: number of workers needed; the pool gives up where
    fewer are up for `BACK_SECONDS`, or where fewer can ever be.
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
        self.here: dict[Any, tuple[str, float]] = {}  # by worker that is up: its name, and since when
        self.loaded = set(workers)  # workers that were up once
        self.earlier: dict[str, float] = defaultdict(float)  # seconds that a worker was up before it was lost, by name
        self.busy: dict[str, float] = defaultdict(float)
        self.units: dict[str, int] = defaultdict(int)
        self.left = len(workers)  # number of workers that are up or may still come
        self.losses = 0
        self.in_flight = 0
        self.why: Exception | None = None  # reason for the last loss of a worker
        self.ending: asyncio.TimerHandle | None = None  # runs while too few workers are up
        self.failure: RayError | None = None  # set once the pool has given up

    def join(self, worker: Any) -> None:
        """Add a worker, which may still be on its way; do nothing for a worker of the pool."""
        if worker not in self.workers:
            self.workers.append(worker)
            self.left += 1
            if self.serving:
                self.serving.append(asyncio.ensure_future(self._serve(worker)))

    def there(self) -> dict[str, float]:
        """Return the seconds that each worker was up, by its name."""
        now, seconds = time.monotonic(), dict(self.earlier)
        for name, since in self.here.values():
            seconds[name] = seconds.get(name, 0.0) + now - since
        return seconds

    async def call(self, urgency: Urgency, method: str, *arguments: Any) -> tuple[Any, ...]:
        """Call `method` of the next free worker; return its meta and references to its products, which stay there.

        Where a worker dies, Ray restarts it and a free worker repeats the call; the result is the same, because it
        depends on the arguments alone. An error that the call itself raises is raised here, without a retry.
        Raises RayError for a call that was lost too often, and where the pool has given up.
        """
        if self.failure is not None:
            raise self.failure
        if not self.serving:
            self.serving = [asyncio.ensure_future(self._serve(worker)) for worker in self.workers]
        answer: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(Call(urgency, next(self.tickets), method, arguments, answer))
        return await answer

    async def rest(self) -> None:
        """Make every worker that is up free its device once its call is done."""
        answers = await asyncio.gather(*(worker.rest.remote() for worker in self.here), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RayActorError):
                raise answer  # a RayActorError is harmless: the worker died, so its device memory is free already

    async def _serve(self, worker: Any) -> None:
        answered: int | None = None  # the pool's count of losses when the worker last answered
        while True:
            if answered != self.losses:  # at first, and after any loss: a lost node takes several workers at once
                answered = self.losses
                if not await self._arrival(worker):
                    return
            call = await self.calls.get()
            if call.answer.done():  # the caller was cancelled
                continue
            if answered != self.losses:  # a worker was lost while this one waited for a call
                self.calls.put_nowait(call)
                continue
            self.in_flight += 1
            try:
                # no retries by Ray, which would wait for this worker while another may be free
                returns = 1 + PRODUCTS.get(call.method, 1)
                method = getattr(worker, call.method).options(num_returns=returns, max_task_retries=0)
                meta_ref, *products = method.remote(*call.arguments)
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
                elif not call.answer.done():  # the call's own error, which may be the loss of another actor
                    call.answer.set_exception(error)
            else:
                self.units[meta.worker] += 1
                self.busy[meta.worker] += sum(w.seconds for w in meta.work)
                self.done(meta)
                if not call.answer.done():
                    call.answer.set_result((meta, *products))

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
                    + (f"; if they were only slow, raise pipeline.timeout_s={self.timeout:g}" if self.timeout else "")
                )
            )

    async def _arrival(self, worker: Any) -> bool:
        """Wait until a worker is up, however long it takes; return False if it never will be."""
        self._gone(worker)
        patience = self.timeout if worker in self.loaded else None  # a new worker may take any time
        while True:
            try:
                name = await asyncio.wait_for(worker.ready.remote(), patience)
            except TimeoutError:  # it hangs or has no room; kill it once only, since loading may exceed the timeout
                log.warning("a %s worker does not answer and is started again", self.role)
                self.lost(self.role)
                ray.kill(worker, no_restart=False)
                patience = None
            except ActorUnavailableError as error:
                self.why = error
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception as error:  # it cannot load, cannot be placed, or was removed
                self.why = error
                self.left -= 1
                log.warning("a %s worker cannot start (%r); %d are left", self.role, cause(error), self.left)
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
        """Note that a worker is down, until it is up again; give up later if too few workers are up."""
        self.why = why or self.why
        if worker in self.here:
            name, since = self.here.pop(worker)
            self.earlier[name] += time.monotonic() - since
        if self.ending is None and len(self.here) < self.least:
            self.ending = asyncio.get_running_loop().call_later(BACK_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Fail the waiting calls and all later ones, because too few workers are left."""
        why = f" ({cause(self.why)!r})" if self.why else ""
        self.failure = RayError(
            f"{len(self.here)} {self.role} workers are up; expected at least {self.least}: the others were lost and "
            f"did not come back{why}; continue with --resume"
        )
        while not self.calls.empty():
            call = self.calls.get_nowait()
            if not call.answer.done():
                call.answer.set_exception(self.failure)
