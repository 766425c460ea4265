"""Calls of the driver to the reward workers, through the coordinator; a few are in flight at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from redif_ray.faults import ATTEMPTS
from redif_ray.types import Meta

POLL_SECONDS = 0.5


def ask_to_stop(coordinator: Any) -> None:
    """Ask the coordinator to let the learner leave; without retries, since Ray reports them to the user as failures."""
    coordinator.stop.options(max_task_retries=0).remote()


def ask(
    coordinator: Any,
    method: str,
    calls: Iterable[tuple[Any, ...]],
    *,
    at_once: int,
    get: Callable[[Any], Any] = ray.get,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[list[Meta], list[Any]]:
    """Return the metas and the data of calls of `method`, in their order. A call whose data is lost is repeated.

    calls: arguments of each call. at_once: number of calls in flight, which bounds the data in the object store.
    get: the caller's substitute for `ray.get`, for one answer. meanwhile: function called repeatedly while calls are in
    flight. Raises ObjectLostError for a call whose data is lost in every attempt.
    """
    every = list(calls)
    left, asked, tries = deque(range(len(every))), dict[Any, int](), Counter[int]()
    answers: dict[int, tuple[Meta, Any]] = {}
    while left or asked:
        while left and len(asked) < at_once:
            index = left.popleft()
            asked[coordinator.ask.remote(method, every[index])] = index
        meanwhile()
        for answer in ray.wait(list(asked), timeout=POLL_SECONDS)[0]:
            index = asked.pop(answer)
            tries[index] += 1
            try:
                meta, reference = get(answer)
                answers[index] = meta, get(reference)
            except ObjectLostError:
                if tries[index] == ATTEMPTS:
                    raise
                left.appendleft(index)
    return [answers[i][0] for i in range(len(every))], [answers[i][1] for i in range(len(every))]
