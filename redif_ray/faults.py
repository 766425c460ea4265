"""Recovery from lost workers and lost objects, and what to tell a user where there is none.

Ray restarts actors and repeats the calls that were in flight. Objects that a dead actor owned, or that lay on a lost
node, are gone: a process that cannot fetch one reports its id to the coordinator, which has the work unit made again.
Work is a pure function of its arguments, so the second result is the same as the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from redif_ray.errors import LostError, UserError
from redif_ray.files import remedy
from redif_ray.types import Meta

log = logging.getLogger(__name__)
ATTEMPTS = 5  # for one piece of work; work that is lost five times is not lost by chance
RESTARTABLE = {"max_restarts": -1, "max_task_retries": ATTEMPTS}  # options of every actor of a run
References = tuple[tuple[int, tuple[Any, ...]], ...]  # (work unit index, references to its products) of each unit


@dataclass(frozen=True, slots=True)
class RoundData:
    """One rank's view of a round: the metas of all work units, and references to the products of its own units.

    metas: one tuple for each work unit, in order of its index. references: of trajectories, scores or targets.
    seconds: the time that the round took to make.
    """

    metas: tuple[tuple[Meta, ...], ...]
    references: References
    seconds: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """A `RoundData` whose references were replaced by the data."""

    metas: tuple[tuple[Meta, ...], ...]
    parts: dict[int, Any]  # products of this rank's work units, by work unit index
    gather_seconds: float
    fetch_seconds: float


class Stopping(Exception):
    """The coordinator has no answer because the run is to stop."""


def fetched(ask: Callable[[tuple[str, ...]], Any], get: Callable[[Any], Any] = ray.get) -> Fetched:
    """Return the coordinator's answer with the data that its references stand for.

    ask: call of the coordinator with the ids of the references that the last attempt found lost. get: the caller's
    replacement for `ray.get`, such as one that notices a request to stop. Raises Stopping, and ObjectLostError where
    an object is lost in every attempt.
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
    """Tell whether this process is an actor that Ray has restarted."""
    context = ray.get_runtime_context() if ray.is_initialized() else None
    return context is not None and context.get_actor_id() is not None and context.was_current_actor_reconstructed


def cause(error: BaseException) -> BaseException:
    """Return the exception that a worker raised, without the wrappers that Ray puts around it."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def explained(error: BaseException, then: str) -> BaseException:
    """Return an error of the disk, or of Ray, as a UserError that says what to do; any other without Ray's wrappers.

    then: what to do once its cause is mended.
    """
    error = cause(error)
    if isinstance(error, OSError) and (what := remedy(error)) is not None:
        return UserError(f"cannot go on: {error}; {what}, and {then}")
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return LostError(f"lost what is needed to go on: {lines[0].rstrip('.')}; {then}")
    return error
