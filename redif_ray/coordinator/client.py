"""What the driver asks reward workers for: a few calls at once, whoever of them is free."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError

from redif_ray.faults import ATTEMPTS
from redif_ray.types import Meta

POLL_SECONDS = 0.5


def ask(
    coordinator: Any,
    method: str,
    calls: Iterable[tuple[Any, ...]],
    *,
    at_once: int,
    get: Callable[[Any], Any] = ray.get,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[list[Meta], list[Any]]:
    """Metas and data of calls of `method`, in their order. A call whose data is lost is made again.

    at_once: that are under way, which bounds what lies in the object store. get: the caller's way to wait for one
    answer; meanwhile: what it does again and again while it waits for several.
    """
    given = list(calls)
    left, asked, tries = deque(range(len(given))), dict[Any, tuple[int, Any]](), Counter[int]()
    found: dict[int, tuple[Meta, Any]] = {}
    while left or asked:
        while left and len(asked) < at_once:
            arguments = tuple(_handed(each) for each in given[left[0]])
            asked[coordinator.ask.remote(method, arguments)] = left.popleft(), arguments
        meanwhile()
        for answer in ray.wait(list(asked), timeout=POLL_SECONDS)[0]:
            index, _ = asked.pop(answer)
            tries[index] += 1
            try:
                meta, reference = get(answer)
                found[index] = meta, get(reference)
            except ObjectLostError:
                if tries[index] == ATTEMPTS:
                    raise
                left.appendleft(index)
    return [found[i][0] for i in range(len(given))], [found[i][1] for i in range(len(given))]


def _handed(argument: Any) -> Any:
    """Arrays go past the coordinator, through the object store."""
    return ray.put(argument) if isinstance(argument, np.ndarray) else argument
