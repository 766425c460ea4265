"""Ray Train: the learner's ranks, started from a thread of the driver.

Ray Train's controller reads this file in a process of its own, so it imports neither torch nor diffusers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from redif_ray.errors import UserError
from redif_ray.pipeline.causes import cause
from redif_ray.pipeline.imports import imported
from redif_ray.pipeline.interrupt import Interrupted

if TYPE_CHECKING:
    from redif_ray.pipeline.session import Session

LEAVE_SECONDS = 60  # that a learner gets to leave a run whose start failed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended: rounds done, whether it was asked to stop, what it cost, and the user error that ended it."""

    round: int
    stopped: bool
    ledger: dict[str, Any]
    error: UserError | FloatingPointError | None = None


def train_loop(job: dict[str, Any]) -> Outcome | None:
    """One rank's work, as Ray Train calls it; rank 0 answers. A user error is returned: retries would not mend it."""
    context = ray.train.get_context()
    learner = imported("redif_ray.pipeline.learner:Learner")(job, context.get_world_rank(), context.get_world_size())
    try:
        outcome = learner.run()
        learner.publisher.forget(before=learner.round + 1)
    except (UserError, FloatingPointError) as error:
        if learner.ranks.world > 1:  # other ranks wait in a collective; leaving quietly would hang them
            raise
        outcome = Outcome(learner.round, False, learner.accounts.ledger.state(), error)
    finally:
        learner.leave()
    return outcome if learner.ranks.first else None


class Fit:
    """Ray Train at work in `thread`, while the main thread shows progress and takes signals."""

    def __init__(self, trainer: Any) -> None:
        self.result: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._fit, args=(trainer,), name="fit", daemon=True)
        self.thread.start()

    def _fit(self, trainer: Any) -> None:
        try:
            self.result["outcome"] = trainer.fit().return_value
        except BaseException as error:  # handed to the main thread, which raises it
            self.result["error"] = error

    def outcome(self) -> Outcome:
        """What the learner answered. Raises its own error, out of the wrapping that Ray puts around it."""
        self.thread.join()
        error = self.result.get("error") or self.result["outcome"].error
        if error is not None:
            raise _cause(error)
        return self.result["outcome"]


@contextmanager
def training(run: Session, until: int | None, *, wait: bool) -> Iterator[Fit]:
    """The learner, started; it waits for `Coordinator.begin`. An error in here makes it leave.

    until: the round after which it leaves; None: the last.
    wait: for it to leave. It may have to load first, and goes anyway where Ray ends with this process's run; so whoever
    interrupts a start-up does not wait.
    """
    run.places.let_learner_in()
    fit = Fit(_trainer(run, until))
    try:
        yield fit
    except Interrupted:
        raise
    except Exception:
        run.coordinator.stop.remote()
        if wait:
            fit.thread.join(LEAVE_SECONDS)
        raise


def _trainer(run: Session, until: int | None) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from redif_ray.pipeline.gloo import Gloo

    learner = run.config.learner
    return TorchTrainer(
        train_loop,
        train_loop_config={
            "config": run.config,
            "folder": str(run.folder.path),
            "until": run.plan.rounds if until is None else min(until, run.plan.rounds),
            "token": run.token,
            "coordinator": run.coordinator,
            "weights": run.publisher.store,
            "writer": run.writer,
        },
        torch_config=TorchConfig(backend="nccl") if learner.gpus else Gloo(),
        scaling_config=ScalingConfig(
            num_workers=learner.workers,
            use_gpu=learner.gpus > 0,
            resources_per_worker={
                "CPU": learner.cpus, **({"GPU": learner.gpus} if learner.gpus else {}), **learner.resources
            },
            label_selector=dict(learner.labels) or None,
        ),
        run_config=RunConfig(
            name=f"{run.config.run.name}-{int(time.time())}",
            storage_path=str(run.folder.path / ".train"),
            failure_config=FailureConfig(max_failures=3),
            callbacks=[_noticed(run)],
        ),
    )


def _noticed(run: Session) -> Any:
    """A callback of Ray Train's that has each loss of ranks counted, and the coordinator told."""
    from ray.train import UserCallback

    writer, coordinator = run.writer, run.coordinator

    class Noticed(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            writer.lost.remote("learner")
            coordinator.learner_lost.remote()

    return Noticed()


def _cause(error: BaseException) -> BaseException:
    failures = getattr(error, "worker_failures", None)
    return cause(next(iter(failures.values())) if failures else error)
