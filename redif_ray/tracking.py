"""The connection to MLflow. The store is SQLite beside the runs by default, and any tracking URI otherwise.

Metrics are buffered and written in batches of whole rounds, so that an interrupted and resumed run neither loses nor
doubles a step. A server that is away causes only delay: metrics that could not be written stay in the buffer and go out
with the next batch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a run prints a link of its own

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from pydantic import BaseModel
from sqlalchemy import create_engine, inspect

from redif_ray.config import public
from redif_ray.config.uris import Uri
from redif_ray.errors import UserError
from redif_ray.masking import DATABASES

log = logging.getLogger(__name__)
KEY = "tracking.uri"
SQLITE = "sqlite:///"
FLUSH_SECONDS = 2.0
LOCK_SECONDS = 5.0  # another process may hold the SQLite file this long
BATCH = 1000  # MLflow's limit of metrics per call
NOTE = 5000  # characters of a description that every store of MLflow takes
TRAINING_VIEW = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's page of an experiment has two views
CURVES = ("reward/", "validation/")  # groups of metrics that are charted first
WORKINGS = "workings/"  # group of all other metrics; MLflow charts groups in the order of their names


class TrackingError(UserError, RuntimeError):
    """The tracking store cannot be used; the message names the store and says what to do."""


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Raise TrackingError where the store `uri` does not take what the block sends, whatever it raises."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow lets the errors of SQLAlchemy, requests and the disk through
        lines = str(error).splitlines() or [""]
        raise TrackingError(
            f"the MLflow store {uri} did not take the run's results ({type(error).__name__}: {lines[0]}); bring it "
            "back, or free its disk, and continue with --resume"
        ) from error


def _file(uri: str) -> Path:
    """Return the file of an SQLite URI, which may end in ?timeout=... and name the file by a URI of its own."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0].removeprefix("file:"))


def _probe(path: Path) -> None:
    """Open the SQLite file once, so that an unusable one raises at once; MLflow would retry for 100 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        connection.execute("PRAGMA schema_version")


def look(uri: str) -> str:
    """Return what the store at `uri` is, without creating anything there or on disk. Raises TrackingError."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's default of 7 takes 4 minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        store = Uri(uri).reveal(KEY)
        if store.startswith(SQLITE) and not _file(store).exists():
            return f"{uri} is not there yet; a run creates it"
        if urlsplit(store).scheme.partition("+")[0] not in {"sqlite", *DATABASES}:
            MlflowClient(tracking_uri=store).search_experiments(max_results=1)
            return f"{uri} answers"
        engine = create_engine(store)
        try:
            made = inspect(engine).has_table("experiments")
        finally:
            engine.dispose()
        return f"{uri} answers" if made else f"{uri} answers and is empty; a run creates its tables"
    except Exception as error:
        raise _unusable(uri, error) from None


def _unusable(uri: str, error: Exception) -> UserError:
    """Return the error for a store that raised `error`. MLflow lets errors of SQLAlchemy and requests through."""
    if isinstance(error, UserError):
        return error
    reason = (str(error).splitlines() or [""])[0]
    return TrackingError(
        f"the MLflow store {uri} cannot be used ({type(error).__name__}: {reason}); set tracking.uri to a store that "
        "can be used, or tracking.uri=off"
    )


def knows(uri: str, run_id: str) -> bool:
    """Tell whether a store has the run; True too where the store does not answer, since `Tracker` reports that."""
    store = Uri(uri).reveal(KEY)
    if store.startswith(SQLITE) and not _file(store).exists():
        return False
    try:
        MlflowClient(tracking_uri=store).get_run(run_id)
    except MlflowException as error:
        return bool(error.error_code != "RESOURCE_DOES_NOT_EXIST")
    return True


def flatten(tree: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Map dotted keys to the text of their values, for MLflow's parameters; a configuration's secrets are left out."""
    items = public(tree) if isinstance(tree, BaseModel) else tree
    flat: dict[str, str] = {}
    for key, value in items.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def charted(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics.jsonl under the names that they have in MLflow."""
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "round"}
    return {key if key.startswith(CURVES) else f"{WORKINGS}{key}": value for key, value in numbers.items()}


def git_commit(package: Path) -> str | None:
    """Return the commit of the checkout whose folder `package` is, with `-dirty` if it is modified.

    Return None where `package` lies deeper in a repository, which then is somebody else's.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.resolve().parent:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a run learns from or is measured by.

    name, use: such as "captions" and "training". source: where it lies. digest: a text of at most 36 characters that
    differs if the content does. facts: what else to show, such as a number of images.
    """

    name: str
    use: str
    source: str
    digest: str
    facts: Mapping[str, Any]

    def profile(self) -> str:
        return json.dumps(dict(self.facts))


class Sampler(SystemMetricsMonitor):
    """MLflow's thread that samples a machine; `left` becomes True when it ends."""

    left = False

    def monitor(self) -> None:
        try:
            super().monitor()
        finally:
            self.left = True


class Tracker:
    """An MLflow run.

    run_id: an existing run to continue; None: a new run. Raises TrackingError if the store cannot be used.
    `experiment`: the id of its experiment.
    """

    def __init__(self, uri: str, experiment: str, run_name: str, run_id: str | None = None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            self.uri = Uri(uri)
            self.store = self.uri.reveal(KEY)
            if self.store.startswith(SQLITE):
                _probe(_file(self.store))
            self.client = MlflowClient(tracking_uri=self.store)
            self.run_id = self._create(experiment, run_name) if run_id is None else self._reopened(run_id)
            self.experiment = str(self.client.get_run(self.run_id).info.experiment_id)
            self.last_step = self._last_step()
        except Exception as error:
            raise _unusable(uri, error) from None
        self.pending: list[Metric] = []
        self.flushed = time.monotonic()
        self.sampler: Sampler | None = None

    def _create(self, experiment: str, run_name: str) -> str:
        existing = self.client.get_experiment_by_name(experiment)
        if existing and existing.lifecycle_stage == LifecycleStage.DELETED:
            raise self._deleted("experiment", f"{experiment!r}", "experiments", "experiment-id", existing.experiment_id)
        experiment_id = existing.experiment_id if existing else self._create_experiment(experiment)
        tags = {"mlflow.source.name": "redif", "mlflow.source.type": "LOCAL"}
        commit = git_commit(Path(__file__).parent)
        if commit:
            tags["mlflow.source.git.commit"] = commit
        return str(self.client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id)

    def _reopened(self, run_id: str) -> str:
        run = self.client.get_run(run_id)
        experiment = self.client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            name = f"{experiment.name!r}, which holds this run,"
            raise self._deleted("experiment", name, "experiments", "experiment-id", experiment.experiment_id)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise self._deleted("run", run_id, "runs", "run-id", run_id)
        self.client.set_terminated(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        return run_id

    def _deleted(self, what: str, name: str, group: str, option: str, number: str) -> TrackingError:
        other = "choose another name by tracking.experiment" if what == "experiment" else "set tracking.uri=off"
        return TrackingError(
            f"the MLflow {what} {name} is deleted in {self.uri}; restore it by `MLFLOW_TRACKING_URI={self.uri} mlflow "
            f"{group} restore --{option} {number}`, or {other}"
        )

    def _create_experiment(self, experiment: str) -> str:
        location = None
        if self.store.startswith(SQLITE):
            location = (_file(self.store).parent / "mlartifacts").resolve().as_uri()
        try:
            return str(self.client.create_experiment(experiment, artifact_location=location, tags=TRAINING_VIEW))
        except MlflowException:  # another run may have created the experiment in the meantime
            existing = self.client.get_experiment_by_name(experiment)
            if existing is None:
                raise
            return str(existing.experiment_id)

    def _last_step(self) -> float:
        history = self.client.get_metric_history(self.run_id, "round")
        return max((m.step for m in history), default=-math.inf)  # the untrained student's step is -1

    def child(
        self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float], status: str = "FINISHED"
    ) -> None:
        """Log a finished run nested in this one, such as a trial. status: FINISHED or another status of MLflow."""
        tags = {"mlflow.parentRunId": self.run_id, "mlflow.source.name": "redif"}
        run = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        stamp = int(time.time() * 1000)
        self.client.log_batch(
            run,
            params=[Param(key, str(value)[:6000]) for key, value in params.items()],
            metrics=[Metric(key, float(value), stamp, 0) for key, value in metrics.items() if math.isfinite(value)],
        )
        self.client.set_terminated(run, status=status)

    def params(self, values: Mapping[str, str]) -> None:
        params = [Param(key, value[:6000]) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def describe(self, text: str) -> None:
        """Show `text`, in Markdown, as the run's description."""
        self.tags({"mlflow.note.content": text[:NOTE]})

    def inputs(self, inputs: Iterable[Input]) -> None:
        """Log what the run learns from and is measured by, each on the run's page with its use and its source."""
        found = [
            DatasetInput(
                Dataset(each.name, each.digest, "local", json.dumps({"uri": each.source}), profile=each.profile()),
                [InputTag("mlflow.data.context", each.use)],
            )
            for each in inputs
        ]
        self.client.log_inputs(self.run_id, found)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Buffer a round's metrics, without values that are not finite; a step that the store has is ignored."""
        if step <= self.last_step:
            return
        stamp = int(time.time() * 1000)
        row = {**values, "round": float(step)}
        self.pending += [Metric(k, float(v), stamp, step) for k, v in row.items() if math.isfinite(v)]
        self.last_step = step
        if time.monotonic() - self.flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> bool:
        """Write the buffered metrics, whole rounds at a time; return False if the store did not answer."""
        self.flushed = time.monotonic()
        while self.pending:
            steps = sorted({m.step for m in self.pending[:BATCH]})
            if len(self.pending) > BATCH and len(steps) > 1:
                batch = [m for m in self.pending[:BATCH] if m.step < steps[-1]]
            else:
                batch = self.pending[:BATCH]
            try:
                self.client.log_batch(self.run_id, metrics=batch)
            except Exception as error:  # whatever the store raises, the run continues and the buffer stays
                log.warning(
                    "MLflow did not take %d metrics (%s); they are kept for later", len(batch), type(error).__name__
                )
                return False
            self.pending = self.pending[len(batch) :]
        return True

    def watch_machine(self) -> None:
        """Make MLflow sample this machine (CPUs, memory, disk, network, GPUs) into the run, as `system/...`.

        MLflow's thread ends when the store does not answer, so callers repeat this call to start another.
        """
        if self.sampler is not None and not self.sampler.left:
            return
        try:
            self.sampler = Sampler(self.run_id, resume_logging=True, tracking_uri=self.store)
            self.sampler.start()
        except Exception as error:  # whatever the store raises, the run continues
            log.warning("MLflow does not sample this machine (%s)", type(error).__name__)

    def summary(self, values: Mapping[str, float], model_id: str | None = None) -> None:
        """Log final values, which belong to no step; values that are not finite are left out.

        model_id: the logged model that the values are those of; None: they are the run's.
        """
        stamp = int(time.time() * 1000)
        metrics = [Metric(k, float(v), stamp, 0, model_id) for k, v in values.items() if math.isfinite(v)]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log an image [H, W, C] uint8 under `key` at `step`, on the run's image page."""
        self.client.log_image(self.run_id, image, key=key, step=step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), artifact_path=folder)

    def finish(self, status: str = "FINISHED") -> None:
        """Write the buffered metrics and end the run.

        status: FINISHED, FAILED or KILLED (interrupted; a resumed run continues it).
        """
        self.flush()
        self.client.set_terminated(self.run_id, status=status)
