"""The workers as Ray actors. A process that holds a handle imports this file, so torch is imported in the actor only.

A worker first checks that its node sees the run folder. Where it does not, or the worker cannot be built (say, for want
of a reward's package), the actor loads and writes nothing, and every call raises the error. The error is not
raised by the constructor because Ray passes errors of a call on unchanged, but those of a constructor as text only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ray import cloudpickle

from redif_ray.config import Config
from redif_ray.errors import UserError
from redif_ray.faults import restarted
from redif_ray.user_code.errors import exits_named
from redif_ray.workers.lazy_import import imported


class Actor:
    """A worker in a process of its own. `source` names the worker's class, which is imported in that process.

    No code of the user's can end the process by `sys.exit`: a call raises an error instead.
    token: file in the run folder that the node must see. variables: environment variables to set in the process.
    writer: pickled handle of the metrics writer, which is told when this process takes the place of a lost one.
    """

    source: ClassVar[str]

    def __init_subclass__(cls) -> None:
        for name, method in [*vars(cls).items()]:
            if callable(method) and not name.startswith("_"):
                setattr(cls, name, exits_named()(method))

    def __init__(
        self,
        name: str,
        config: Config,
        token: Path,
        variables: Mapping[str, str] | None = None,
        writer: bytes | None = None,
    ) -> None:
        if writer is not None and restarted():
            cloudpickle.loads(writer).came_back.remote(name.rpartition("-")[0])
        os.environ.update(variables or {})
        self._resting = _made(lambda: imported(self.source)(name, config), token)

    @property
    def _worker(self) -> Any:
        """Return the worker, moved to its device if it rests."""
        self._resting.offload.wake()
        return self._resting

    @exits_named()
    def ready(self) -> str:
        return self._resting.ready()

    @exits_named()
    def rest(self) -> None:
        """Move the worker to host memory until the next call, so that others can use its device."""
        self._resting.offload.rest()


class RolloutActor(Actor):
    source = "redif_ray.workers.rollout:StudentRolloutWorker"

    def rollout(self, *arguments: Any) -> Any:
        return self._worker.rollout(*arguments)


class RewardActor(Actor):
    source = "redif_ray.workers.reward:TeacherRewardWorker"

    def targets(self, *arguments: Any) -> Any:
        return self._worker.sent_targets(*arguments)

    def stored(self, *arguments: Any) -> Any:
        return self._worker.stored(*arguments)

    def encode(self, *arguments: Any) -> Any:
        return self._worker.encode(*arguments)

    def score(self, *arguments: Any) -> Any:
        return self._worker.score(*arguments)

    def see(self, *arguments: Any) -> Any:
        return self._worker.see(*arguments)

    def reference(self, *arguments: Any) -> Any:
        return self._worker.reference(*arguments)


class _Unmade:
    """Stands in for a worker that cannot be built: every call raises the error, which the user can fix."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, _: str) -> Any:
        raise self._error


def _made(make: Callable[[], Any], token: Path) -> Any:
    """Return the worker that `make` builds, or a stand-in that raises the error where it cannot be built."""
    from redif_ray.runs.folder import check_seen

    try:
        check_seen(token)
        with exits_named():
            return make()
    except UserError as error:
        return _Unmade(error)
