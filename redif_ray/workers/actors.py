"""The workers as actors. Whoever holds a handle imports the actor's file, so this one imports torch only at work.

A worker first looks whether its node sees the run folder. Where it does not, nothing is loaded or written there, and
every call says so; as it does where the worker cannot be built, of a reward's package that is missing there, say. An
error of a call reaches the driver as it is, one of a constructor as text only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from redif_ray.config import Config
from redif_ray.errors import UserError
from redif_ray.workers.lazy_import import imported


class Actor:
    """A worker in a process of its own. `source` names the worker's class, which is imported where it works.

    variables: of its environment, over those that it has.
    """

    source: ClassVar[str]

    def __init__(self, name: str, config: Config, token: Path, variables: Mapping[str, str] | None = None) -> None:
        os.environ.update(variables or {})
        self._resting = _made(lambda: imported(self.source)(name, config), token)

    @property
    def _worker(self) -> Any:
        """On its device: whoever asks for it has work for it."""
        self._resting.offload.wake()
        return self._resting

    def ready(self) -> str:
        return self._resting.ready()

    def rest(self) -> None:
        """Leave the device to others until the next call."""
        self._resting.offload.rest()


class StudentRolloutWorker(Actor):
    source = "redif_ray.workers.rollout:StudentRolloutWorker"

    def rollout(self, *arguments: Any) -> Any:
        return self._worker.rollout(*arguments)


class TeacherRewardWorker(Actor):
    source = "redif_ray.workers.reward:TeacherRewardWorker"

    def targets(self, *arguments: Any) -> Any:
        return self._worker.targets(*arguments)

    def encode(self, *arguments: Any) -> Any:
        return self._worker.encode(*arguments)

    def score(self, *arguments: Any) -> Any:
        return self._worker.score(*arguments)

    def compare(self, *arguments: Any) -> Any:
        return self._worker.compare(*arguments)

    def sample(self, *arguments: Any) -> Any:
        return self._worker.sample(*arguments)

    def embed(self, *arguments: Any) -> Any:
        return self._worker.embed(*arguments)


class _Unmade:
    """Stands where a worker cannot be: every call raises what a user can mend there."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, _: str) -> Any:
        raise self._error


def _made(make: Callable[[], Any], token: Path) -> Any:
    """The worker that `make` builds, where its node sees the run folder."""
    from redif_ray.runs.folder import check_seen

    try:
        check_seen(token)
        return make()
    except UserError as error:
        return _Unmade(error)
