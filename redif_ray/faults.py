"""What of a run may be lost on the way, and how whoever misses it gets it again.

Ray restarts the actors and repeats the calls that were in flight. What an actor owned is gone with it, and what lay on
a lost node too: whoever cannot fetch it says so to the coordinator, which has those units done again. Work is a pure
function of its arguments, so what comes the second time is the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from redif_ray.types import Meta

log = logging.getLogger(__name__)
ATTEMPTS = 5  # at one piece of work: what is lost as often is not lost by chance
RESTARTABLE = {"max_restarts": -1, "max_task_retries": ATTEMPTS}  # of every actor of a run
References = tuple[tuple[int, tuple[Any, ...]], ...]  # (work unit index, references to what was made of it)


@dataclass(frozen=True, slots=True)
class RoundData:
    """A round as a rank sees it: all metas, and (trajectories, scored or targets) references of its own work units."""

    metas: tuple[tuple[Meta, ...], ...]  # one tuple a work unit, in order of index
    references: References
    seconds: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """`RoundData` with its data in place of the references."""

    metas: tuple[tuple[Meta, ...], ...]
    parts: dict[int, Any]  # what was made of this rank's work units, by work unit index
    gather_seconds: float
    fetch_seconds: float


class Stopping(Exception):
    """No answer: the run is to stop."""


def fetched(ask: Callable[[tuple[str, ...]], Any], get: Callable[[Any], Any] = ray.get) -> Fetched:
    """What the coordinator answers, with the data that it refers to.

    ask: calls the coordinator with the ids of the references that were lost since. get: the caller's way to wait.
    Raises Stopping, and ObjectLostError for what is lost again and again.
    """
    lost: tuple[str, ...] = ()
    for attempt in range(1, ATTEMPTS + 1):
        data: RoundData | None = get(ask(lost))
        if data is None:
            raise Stopping
        started, parts, missed = time.perf_counter(), {}, []
        for index, references in data.references:
            try:
                parts[index] = get(list(references))
            except ObjectLostError as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("work unit %d was lost before it was read (%s)", index, type(error).__name__)
                missed += [reference.hex() for reference in references]
        if not missed:
            return Fetched(data.metas, parts, data.seconds, time.perf_counter() - started)
        lost = tuple(missed)
    raise AssertionError("the last attempt returns or raises")


def restarted() -> bool:
    """Whether this is an actor that Ray started again."""
    context = ray.get_runtime_context() if ray.is_initialized() else None
    return context is not None and context.get_actor_id() is not None and context.was_current_actor_reconstructed


def cause(error: BaseException) -> BaseException:
    """Return the exception that a worker raised, without the wrappers that Ray puts around it."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error
