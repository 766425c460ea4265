"""The driver's side of training: Ray Train starts the learner's ranks, from a thread of the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redif_ray.causes import cause
from redif_ray.interrupt import Interrupted
from redif_ray.job.session import Session
from redif_ray.learner.ray_train import Outcome, train_loop

LEAVE_SECONDS = 60  # that a learner gets to leave a run whose start failed


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

    from redif_ray.learner.gloo import Gloo

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
                "CPU": learner.cpus,
                **({"GPU": learner.gpus} if learner.gpus else {}),
                **learner.resources,
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
