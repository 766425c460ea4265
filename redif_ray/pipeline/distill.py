"""The main job: from a configuration to a run folder with a few-step student in it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from redif_ray.config import Config
from redif_ray.errors import Notice
from redif_ray.pipeline import calibrate, estimate
from redif_ray.pipeline.cluster import connect
from redif_ray.pipeline.finish import finish
from redif_ray.pipeline.learner import Outcome, train_loop
from redif_ray.pipeline.preflight import preflight
from redif_ray.pipeline.run_folder import RunFolder, latest_checkpoint
from redif_ray.pipeline.session import Session, session
from redif_ray.tracking import Tracker, TrackingError, flatten, git_commit, tracking_uri

POLL_SECONDS = 0.5


class Interrupted(Notice):
    """The run was asked to stop; its checkpoint is written and it can be resumed."""

    exit_code = 130


def distill(config: Config, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run the job to its end and return the run folder.

    Raises UserError (ConfigError, RunError, CheckpointError and the like) with nothing of the user's lost, and
    Interrupted after Ctrl-C or SIGTERM.
    """
    console = console or Console()
    config = absolute(config)
    preflight(config)
    folder = RunFolder.open(config, resume=resume)
    try:
        latest_checkpoint(folder.path / "checkpoints")
        console.print(estimate.table(estimate.estimate(config)))
        _open_tracking(config, folder)
        started = time.monotonic()
        with connect(config), session(config, folder) as run:
            calibration = calibrate.calibration(run, console)
            console.print(f"start-up took {time.monotonic() - started:.0f} s; training")
            outcome = _train(run, calibration, console)
            if outcome.error is not None:
                raise _cause(outcome.error)
            if outcome.stopped:
                _close_tracking(config, folder, "KILLED")
                raise Interrupted(f"stopped after round {outcome.round} of {run.plan.rounds}; continue with --resume")
            finish(run, outcome, console)
        return folder.path
    except BaseException as error:
        if not isinstance(error, Interrupted):
            _close_tracking(config, folder, "FAILED")
        raise
    finally:
        folder.close()


def absolute(config: Config) -> Config:
    """Workers have working directories of their own: paths of this one are made absolute."""
    tree = config.model_dump()
    tree["run"]["root"] = str(Path(config.run.root).resolve())
    if config.teacher.store:
        tree["teacher"]["store"] = str(Path(config.teacher.store).resolve())
    for section, key in (("teacher", "model"), ("evaluation", "judge")):
        if Path(tree[section][key]).is_dir():
            tree[section][key] = str(Path(tree[section][key]).resolve())
    for term in tree["reward"]["terms"].values():
        for option, value in term["options"].items():
            path, colon, function = value.rpartition(":") if option == "callable" else (value, "", "")
            if isinstance(path, str) and path and Path(path).exists():
                term["options"][option] = f"{Path(path).resolve()}{colon}{function}"
    return Config.model_validate(tree)


def _open_tracking(config: Config, folder: RunFolder) -> None:
    """Create the MLflow run, or take up the one of the run that is resumed; its id is kept in the run folder."""
    uri = tracking_uri(config)
    if uri is None:
        return
    known = folder.state.get("mlflow_run_id")
    tracker = Tracker(uri, config.tracking.experiment, config.run.name, known)
    if known is None:
        folder.update_state(mlflow_run_id=tracker.run_id)
        tracker.params(flatten(config))
        tracker.artifact(folder.path / "config.yaml")
        tracker.tags({"git_commit": git_commit(Path(__file__).parent) or "none"})


def _close_tracking(config: Config, folder: RunFolder, status: str) -> None:
    """Say in MLflow how the run ended. A store that is gone by now must not hide the error that ended it."""
    uri, run_id = tracking_uri(config), folder.state.get("mlflow_run_id")
    if uri and run_id:
        try:
            Tracker(uri, config.tracking.experiment, config.run.name, run_id).finish(status)
        except TrackingError as error:
            logging.getLogger(__name__).warning("MLflow run %s stays open: %s", run_id, error)


def _train(run: Session, calibration: calibrate.Calibration, console: Console) -> Outcome:
    """Fit in a thread, so that this one can show progress and take signals."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    learner = run.config.learner
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": run.config,
            "folder": str(run.folder.path),
            "coordinator": run.coordinator,
            "weights": run.weights,
            "writer": run.writer,
            "calibration": calibration,
        },
        torch_config=TorchConfig(backend="nccl" if learner.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=learner.workers, use_gpu=learner.gpu, resources_per_worker={"CPU": learner.cpus}
        ),
        run_config=RunConfig(
            name=f"{run.config.run.name}-{int(time.time())}",
            storage_path=str(run.folder.path / ".train"),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    result: dict[str, Any] = {}

    def fit() -> None:
        try:
            result["outcome"] = trainer.fit().return_value
        except BaseException as error:  # handed to the main thread, which raises it
            result["error"] = error

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    with _stop_on_signal(run, console):
        thread.start()
        _show_progress(run, thread, console)
    if "error" in result:
        raise _cause(result["error"])
    return result["outcome"]


def _cause(error: BaseException) -> BaseException:
    """The learner's own error, out of the wrapping that Ray puts around it."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else error
    while isinstance(inner, ray.exceptions.RayTaskError) and inner.cause is not None:
        inner = inner.cause
    return inner


@contextmanager
def _stop_on_signal(run: Session, console: Console) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint; the second one is obeyed at once."""

    def ask(number: int, _: Any) -> None:
        console.print("\nstopping after this round and writing a checkpoint; once more to leave without")
        run.coordinator.stop.remote()
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _show_progress(run: Session, thread: threading.Thread, console: Console) -> None:
    """One line a round: round, groups/s, reward at eta 0, time left."""
    last, began, total = -1, time.monotonic(), run.plan.rounds
    first: int | None = None
    reward: float | None = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for row in ray.get(run.writer.latest.remote(last)):
            last = row["round"]
            if first is None:
                first, began = last, time.monotonic()
            reward = row.get("validation/reward", reward)
            if not console.is_terminal and last % 10 and last + 1 < total and "validation/reward" not in row:
                continue
            pace = (time.monotonic() - began) / max(1, last - first)
            left = f"{pace * (total - last - 1):4.0f} s left" if last > first else "   ? s left"
            shown = "      -" if reward is None else f"{reward:+.5f}"
            end = "\r" if console.is_terminal and last + 1 < total and "validation/reward" not in row else "\n"
            console.print(
                f"round {last + 1:4d}/{total}  {row['phase']:<10}  {row['groups_per_second']:6.1f} groups/s  "
                f"reward at eta 0 {shown}  {left}",
                end=end,
                highlight=False,
                soft_wrap=True,
            )
