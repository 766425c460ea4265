"""A start that takes long says how many workers are ready."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from redif_ray.interrupt import StopRequest
from redif_ray.job import session


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((0, 1, 2, 3, 4), [*(f"{n} of 3 workers are ready" for n in (1, 1, 2, 3))]),
        ((0, 1, 1, 1, 1), ["1 of 3 workers are ready", "all 3 workers are ready"]),
        ((0, 0, 0, 0, 0), []),
    ],
)
def test_the_number_of_ready_workers_is_told(
    times: tuple[int, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's wait is replaced by one of whose calls each finds one more worker ready, the second one nothing.

    times: seconds at the start and after each of these calls; what is told is told once a second.
    """
    found: Any = iter([(["a"], ["b", "c"]), ([], ["b", "c"]), (["b"], ["c"]), (["c"], [])])
    monkeypatch.setattr(ray, "wait", lambda *_, **__: next(found))
    monkeypatch.setattr(session, "get", lambda *_: None)
    monkeypatch.setattr(session, "TOLD_SECONDS", 1.0)
    clock = iter(times)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    actors = [SimpleNamespace(ready=SimpleNamespace(remote=lambda name=name: name)) for name in "abc"]
    told: list[str] = []
    session.all_ready(actors, StopRequest(), tell=told.append)
    assert told == expected
