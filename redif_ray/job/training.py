"""The driver's side of training: a thread of the driver in which Ray Train starts the learner's ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray.exceptions import RayActorError

from redif_ray.coordinator.client import ask_to_stop
from redif_ray.faults import cause
from redif_ray.interrupt import Interrupted
from redif_ray.job.session import Session
from redif_ray.learner.ray_train import Outcome, train_loop

FAILURES = 3  # losses of ranks, and of Ray Train itself, after which a run ends
LEAVE_SECONDS = 60  # time for the learner to leave a run whose start failed


class Fit:
    """Ray Train in `thread`, while the main thread shows progress and handles signals.

    trainer: makes a trainer, each of which starts from the newest checkpoint. lost: called when Ray Train is lost.
    """

    def __init__(self, trainer: Callable[[], Any], lost: Callable[[], object]) -> None:
        self.trainer, self.lost, self.left = trainer, lost, False
        self.result: dict[str, Any] = {}
        first = trainer()  # in this thread, because it imports
        self.thread = threading.Thread(target=self._fit, args=(first,), name="fit", daemon=True)
        self.thread.start()

    def _fit(self, trainer: Any) -> None:
        for failures in range(FAILURES + 1):
            try:
                self.result = {"outcome": trainer.fit().return_value}
            except RayActorError as error:  # Train's controller was lost, and the ranks went with it
                self.result = {"error": error}
                if failures < FAILURES and not self.left:
                    self.lost()
                    trainer = self.trainer()
                    continue
            except BaseException as error:  # handed to the main thread, which raises it
                self.result = {"error": error}
            return

    def leave(self) -> None:
        """Start no other trainer."""
        self.left = True

    def outcome(self) -> Outcome:
        """Wait for the learner and return its outcome. Raises the learner's original error, without Ray's wrappers."""
        self.thread.join()
        error = self.result.get("error") or self.result["outcome"].error
        if error is not None:
            raise _cause(error)
        return self.result["outcome"]


@contextmanager
def training(run: Session, until: int | None, *, wait: bool) -> Iterator[Fit]:
    """Start the learner, which waits for `Coordinator.begin`, and stop it if the block raises an error.

    until: round after which the learner leaves; None: the last round.
    wait: whether to wait for the learner to leave after an error. The wait is needless if Ray ends with this run. An
        interrupted start-up never waits, because the learner may have to load first.
    """
    run.places.let_learner_in()
    fit = Fit(partial(_trainer, run, until), partial(_lost, run.writer, run.coordinator))
    try:
        yield fit
    except Interrupted:
        raise
    except Exception:
        ask_to_stop(run.coordinator)
        if wait:
            fit.thread.join(LEAVE_SECONDS)
        raise
    finally:
        fit.leave()


def _trainer(run: Session, until: int | None) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from redif_ray.learner.process_group import ProcessGroup

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
        torch_config=ProcessGroup(backend="nccl" if learner.gpus else "gloo"),
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
            failure_config=FailureConfig(max_failures=FAILURES),
            callbacks=[_noticed(run)],
        ),
    )


def _noticed(run: Session) -> Any:
    """Return a callback of Ray Train that counts each loss of ranks and tells the coordinator."""
    from ray.train import UserCallback

    writer, coordinator = run.writer, run.coordinator

    class Noticed(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            _lost(writer, coordinator)

    return Noticed()


def _lost(writer: Any, coordinator: Any) -> None:
    writer.lost.remote("learner")
    coordinator.learner_lost.remote()


def _cause(error: BaseException) -> BaseException:
    failures = getattr(error, "worker_failures", None)
    return cause(next(iter(failures.values())) if failures else error)
