"""The main job: from a configuration to a run folder with a few-step student in it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from redif_ray.busy import busy
from redif_ray.cluster.connect import connect, warn_of_small_store
from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.faults import explained
from redif_ray.interrupt import Interrupted, StopRequest, stop_requests
from redif_ray.job import calibration
from redif_ray.job.batches import with_batches
from redif_ray.job.finish import finish
from redif_ray.job.inputs import inputs
from redif_ray.job.preflight import check_rounds, preflight
from redif_ray.job.progress import Progress, stages
from redif_ray.job.session import session
from redif_ray.job.show_rounds import show_rounds
from redif_ray.job.training import training
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import cost, factory, messages
from redif_ray.planning.disk import check_room
from redif_ray.planning.paths import absolute
from redif_ray.runs import timeline
from redif_ray.runs.backup import complete, prepare, uploading
from redif_ray.runs.backup_thread import Uploader
from redif_ray.runs.folder import RunFinished, RunFolder, latest_checkpoint, round_of
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.mlflow_page import charts, mlflow_page
from redif_ray.runs.round_report import RoundReport
from redif_ray.user_code.errors import exits_named

OnRound: TypeAlias = Callable[[RoundReport], object]


def distill(
    config: Config, *, resume: bool = False, console: Console | None = None, on_round: OnRound = lambda _: None
) -> Path:
    """Run the job to its end and return the run folder.

    on_round: see `show_rounds`.
    Raises UserError (ConfigError, RunError, CheckpointError and others), which leaves the user's files as they were,
    and Interrupted after Ctrl-C or SIGTERM.
    """
    with stop_requests() as stop, exits_named():
        return run_part(config, stop, resume=resume, console=console or Console(), on_round=on_round)


def run_part(
    config: Config,
    stop: StopRequest,
    *,
    until: int | None = None,
    parent: str | None = None,
    resume: bool,
    console: Console,
    on_round: OnRound = lambda _: None,
) -> Path:
    """Run `distill` for a caller that handles the signals itself.

    stop: the caller's request to stop.
    until: round after which to stop with a checkpoint and a validation, but no evaluation; None: a whole run.
    parent: id of the MLflow run in which this run is nested; None: not nested.
    on_round: see `show_rounds`.
    """
    config = absolute(config)
    check_rounds(config)
    conditions = preflight(config)
    for note in conditions.notes:
        console.print(note, highlight=False, markup=False)
    check_room(config, conditions)
    hashed = _hashed(config)
    stop.check()
    remote, fetched = prepare(config, resume=resume, console=console)
    config = with_batches(config, console, resume=resume)
    hashed.result()
    try:
        folder = RunFolder.open(config, resume=resume)
    except RunFinished:
        if remote is not None:
            complete(config, remote, console)
        raise
    try:
        folder.keep_conditions(conditions)
        _open_tracking(config, conditions, folder, parent, fetched)
        with uploading(config, folder, remote, console) as own:
            try:
                _distill(config, conditions, folder, stop, console, until, own, on_round)
            finally:
                timeline.draw(folder)
        if until is not None:
            _close_tracking(config, folder, "FINISHED")
        return folder.path
    except Interrupted:
        _close_tracking(config, folder, "KILLED")
        raise
    except KeyboardInterrupt:  # raised by the second Ctrl-C
        raise stop.interrupted(f"stopped at once; {folder.path} holds the run up to its last checkpoint") from None
    except BaseException as error:
        told = explained(error, "continue with --resume")
        folder.keep_failure(told)
        _close_tracking(config, folder, "FAILED")
        raise told from (error if told is not error else error.__cause__)
    finally:
        folder.close()


def _hashed(config: Config) -> Future[dict[str, str]]:
    """Begin to put the checksums of the teacher's parts into the store, where all processes find them.

    The files of a large text encoder take tens of seconds, and so does the choice of batches meanwhile, which keeps one
    core busy. An error there does not wait for the thread.
    """
    teacher, future = teacher_outline(config.teacher), Future[dict[str, str]]()

    def compute() -> None:
        try:
            future.set_result(teacher.parts_sha256(factory.digests(config)))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=compute, name="checksums", daemon=True).start()
    return future


def _distill(
    config: Config,
    conditions: Conditions,
    folder: RunFolder,
    stop: StopRequest,
    console: Console,
    until: int | None,
    own: Uploader | None,
    on_round: OnRound,
) -> None:
    newest = latest_checkpoint(folder.path / "checkpoints")
    read_rows(
        folder.path / "metrics.jsonl"
    )  # fails here with a clear error; the metrics writer's constructor could not report it
    expected = cost.estimate(config, conditions)
    console.print(cost.table(expected))
    if newest is not None:
        console.print(f"{round_of(newest)} rounds of this are done already", highlight=False)
    if elsewhere := busy():
        console.print(elsewhere, highlight=False, soft_wrap=True)
    told = {"rounds": expected.round_seconds, "evaluation": expected.seconds["evaluation"]}
    folder.update_state(expected=told, progress={}, part=None)
    console.print("starting Ray and the workers")
    started = time.monotonic()
    with connect(config) as ends, session(config, conditions, folder, stop) as run:
        warn_of_small_store(messages.store(config).total)
        costs = [expected.round_seconds[run.plan.phase(r).name] for r in range(run.plan.rounds)][:until]
        progress = Progress(console, stages(expected.seconds, sum(costs), whole=until is None), folder.keep_progress)
        with training(run, until, wait=not ends) as fit:
            run.ready(console.print)
            run.coordinator.begin.remote(calibration.calibration(run, console))
            console.print(f"start-up took {time.monotonic() - started:.0f} s; training")
            for i, line in enumerate(mlflow_page(config, folder.state)):
                console.print(f"{'' if i else 'MLflow':<12} {line}", highlight=False, soft_wrap=True)
            with progress:
                show_rounds(run, fit.thread, costs, progress, on_round)
        outcome = fit.outcome()
        if outcome.stopped:
            raise stop.interrupted(f"stopped after round {outcome.round} of {run.plan.rounds}; continue with --resume")
        if own is not None:
            own.hand()  # the learner, whose uploads came before, has ended
        if until is not None:
            folder.update_state(part=until)
            return
        with progress:
            finish(run, outcome, progress)


def _open_tracking(
    config: Config, conditions: Conditions, folder: RunFolder, parent: str | None, fetched: bool
) -> None:
    """Create the MLflow run, or reopen that of a resumed run. The run folder keeps its id.

    parent: id of the MLflow run in which this run is nested; None: not nested.
    fetched: whether the run folder was fetched from another machine. If the tracking store does not have the MLflow
        run then, because it was a file on that machine, a new one is created.
    """
    uri = config.tracking_uri
    if uri is None:
        return
    from redif_ray.tracking import Tracker, answered, flatten, git_commit, knows  # MLflow takes seconds to import

    run_id = folder.state.get("mlflow_run_id")
    if fetched and run_id is not None and not knows(uri, run_id):
        run_id = None
    tracker = Tracker(uri, config.experiment, config.run.name, run_id)
    if run_id is None:
        folder.update_state(mlflow_run_id=tracker.run_id, mlflow_page=charts(tracker.experiment, tracker.run_id))
        with answered(uri):
            tracker.params(flatten(config))
            tracker.inputs(inputs(config, conditions))
            tracker.artifact(folder.path / "config.yaml")
            tracker.tags({"git_commit": git_commit(Path(__file__).parent) or "none"})
            if parent is not None:
                tracker.tags({"mlflow.parentRunId": parent})


def _close_tracking(config: Config, folder: RunFolder, status: str) -> None:
    """Set the final status of the MLflow run. An unreachable store must not hide the error that ended the run."""
    uri, run_id = config.tracking_uri, folder.state.get("mlflow_run_id")
    if uri and run_id:
        from redif_ray.tracking import Tracker, TrackingError, answered

        try:
            with answered(uri):
                Tracker(uri, config.experiment, config.run.name, run_id).finish(status)
        except TrackingError as error:
            logging.getLogger(__name__).warning("MLflow run %s keeps the status RUNNING: %s", run_id, error)
