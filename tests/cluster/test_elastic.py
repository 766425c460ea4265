"""When workers beyond the least are asked for, and when they leave. Answers and actors here are plain objects."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, RayTaskError

from redif_ray.cluster.elastic import Growth
from redif_ray.runs.folder import RunError


@dataclass(eq=False)
class Answer:
    value: Any


class Remote:
    """A method of an actor: notes what it is asked, and gives the answers that it was told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), []

    def remote(self, *arguments: Any) -> Any:
        self.asked.append([dict(argument) for argument in arguments])
        return Answer(self.answers.pop(0) if self.answers else None)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ray, whose answers are there at once; an exception among them is raised."""

    def get(answer: Any) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    found: list[Any] = []
    monkeypatch.setattr(ray, "wait", lambda answers, **_: (answers, []))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", found.append)
    return found


def grown(*placed: bool | None, ready: tuple[Any, ...] = ()) -> tuple[Growth, SimpleNamespace]:
    worker = SimpleNamespace(ready=Remote(*ready))
    return Growth(lambda: {"rollout-1": worker}, SimpleNamespace(grown=Remote(*placed))), worker


def test_they_come_with_the_learner_and_leave_where_it_finds_no_room(killed: list[Any]) -> None:
    growth, worker = grown(None, True, None, False, False, True)
    told = [[{}], [{}], [{"rollout-1": worker}], [{"rollout-1": worker}], [{}], [{}], [{"rollout-1": worker}]]
    for _ in told:
        growth.look_after()
    assert growth.coordinator.grown.asked == told
    assert killed == [worker]
    growth.stop()
    assert killed == [worker, worker] and not growth.actors


def test_one_that_cannot_join_is_a_warning(killed: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = RayTaskError("ready", "", RunError("node N does not see it")).as_instanceof_cause()
    growth, worker = grown(ready=(ActorUnavailableError("", None), elsewhere))
    growth.start()
    growth.start()
    for _ in range(3):
        growth.look_after()
    assert caplog.messages == ["rollout-1 cannot join: node N does not see it"]
    assert len(worker.ready.asked) == 2 and not growth.coming


def test_nothing_is_asked_where_none_are_to_come() -> None:
    growth = Growth(None, None)
    growth.start()
    growth.look_after()
    growth.stop()
