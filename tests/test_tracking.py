from __future__ import annotations

import itertools
import logging
import math
import os
import sqlite3
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from redif_ray import logged_student, tracking
from redif_ray.config import Config, Term, load
from redif_ray.logged_student import log_student
from redif_ray.tracking import Input, Tracker, TrackingError, charted, flatten, git_commit, look


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's one store: MLflow takes seconds to create its tables."""
    return tmp_path_factory.mktemp("runs") / "below" / "mlflow.db"


@pytest.fixture(scope="module")
def uri(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return Tracker(uri, "tests", "run")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process holds the file."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


@contextmanager
def away(file: Path) -> Iterator[None]:
    """The store refuses metrics at once, as a server that is gone; a locked file would take MLflow 20 s to notice."""

    def run(statement: str) -> None:
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute(statement)
        connection.close()

    run("ALTER TABLE metrics RENAME TO hidden")
    try:
        yield
    finally:
        run("ALTER TABLE hidden RENAME TO metrics")


def rows(file: Path, tracker: Tracker) -> list[tuple[str, int, float]]:
    """(key, step, value) as SQLite holds them, read without MLflow."""
    with sqlite3.connect(file) as connection:
        found = connection.execute(
            "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY step, key", (tracker.run_id,)
        ).fetchall()
    connection.close()
    return found


@pytest.mark.slow
def test_a_run_s_metrics_arrive_once(tracker: Tracker, file: Path) -> None:
    tracker.metrics({"reward": -0.25, "recall": 1}, step=-1)  # the untrained student
    tracker.metrics({"reward": 0.1 + 0.2}, step=0)
    tracker.metrics({"reward": 9.0}, step=0)
    tracker.metrics({"reward": 9.0}, step=-1)
    assert tracker.flush() and tracker.flush()
    expected = [
        ("recall", -1, 1.0),
        ("reward", -1, -0.25),
        ("round", -1, -1.0),
        ("reward", 0, 0.1 + 0.2),
        ("round", 0, 0.0),
    ]
    assert rows(file, tracker) == expected
    assert MlflowClient(tracker.uri).get_run(tracker.run_id).data.metrics["reward"] == 0.1 + 0.2


@pytest.mark.slow
def test_a_resumed_run_neither_doubles_nor_loses_a_step(tracker: Tracker, file: Path, uri: str) -> None:
    for step in range(4):
        tracker.metrics({"a": step}, step)
    tracker.flush()
    tracker.metrics({"a": 4}, 4)  # never written: the process dies here
    resumed = Tracker(uri, "tests", "another name", tracker.run_id)
    assert resumed.run_id == tracker.run_id and resumed.last_step == 3
    for step in range(2, 7):  # replayed from the checkpoint of round 2
        resumed.metrics({"a": 10 + step}, step)
    resumed.finish()
    assert [(s, v) for k, s, v in rows(file, resumed) if k == "a"] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 14),
        (5, 15),
        (6, 16),
    ]


def test_a_fresh_run_writes_round_zero(tracker: Tracker, file: Path) -> None:
    assert tracker.last_step < -1
    tracker.metrics({}, 0)
    tracker.flush()
    assert rows(file, tracker) == [("round", 0, 0.0)]


def test_values_that_are_not_finite_are_left_out(tracker: Tracker, file: Path) -> None:
    tracker.metrics({"a": math.nan, "b": math.inf, "c": 1.0}, 0)
    tracker.flush()
    assert [k for k, _, _ in rows(file, tracker)] == ["c", "round"]


@pytest.mark.slow
def test_what_the_store_did_not_take_is_written_later(
    tracker: Tracker, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.metrics({"a": 1.0}, 0)
    with away(file), caplog.at_level(logging.WARNING, tracking.__name__):
        assert not tracker.flush()
        tracker.metrics({"a": 2.0}, 1)
        assert not tracker.flush()
    assert "did not take 4 metrics" in caplog.text and len(tracker.pending) == 4
    assert rows(file, tracker) == []
    tracker.metrics({"a": 3.0}, 2)
    assert tracker.flush() and tracker.pending == []
    assert [(s, v) for k, s, v in rows(file, tracker) if k == "a"] == [(0, 1.0), (1, 2.0), (2, 3.0)]


def test_metrics_are_written_by_and_by(tracker: Tracker, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker.metrics({"a": 1.0}, 0)
    assert rows(file, tracker) == []
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    tracker.metrics({"a": 2.0}, 1)
    assert len(rows(file, tracker)) == 4


@pytest.mark.parametrize("width", [2, 3, 6, 7, 20])
def test_a_batch_holds_whole_rounds(width: int, tracker: Tracker, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut after any batch, the store holds each round entirely or not at all, if a round fits a batch."""
    monkeypatch.setattr(tracking, "BATCH", 7)
    written: list[list[int]] = []
    real = tracker.client.log_batch

    def log_batch(run_id: str, metrics: Any) -> None:
        assert 0 < len(metrics) <= 7
        written.append([m.step for m in metrics])
        real(run_id, metrics=metrics)

    monkeypatch.setattr(tracker.client, "log_batch", log_batch)
    for step in range(6):
        tracker.metrics({f"m{i}": step + i / 100 for i in range(width - 1)}, step)
    assert tracker.flush()
    assert len(rows(file, tracker)) == 6 * width
    assert [step for batch in written for step in batch] == [step for step in range(6) for _ in range(width)]
    if width <= 7:
        assert all(not set(a) & set(b) for a, b in itertools.pairwise(written))
    else:  # too wide for one batch: `round`, which a resumed run looks for, comes last
        assert [m for batch in written[:3] for m in batch] == [0] * 20


@pytest.mark.slow
def test_more_metrics_than_one_call_takes(tracker: Tracker, file: Path) -> None:
    for step in range(3):
        tracker.metrics({f"m{i}": float(i) for i in range(600)}, step)
    assert tracker.flush() and len(rows(file, tracker)) == 3 * 601


def test_params_tags_summary_image_and_artifact(tracker: Tracker, file: Path, tmp_path: Path) -> None:
    config = Config()
    tracker.params(flatten(config))
    tracker.tags({"git_commit": "abc"})
    tracker.metrics({"reward": 1.0}, 5)
    tracker.summary({"final/frechet": 12.5, "final/none": math.nan})
    tracker.image("samples", np.zeros((4, 4, 3), np.uint8), 5)
    (tmp_path / "report.md").write_text("x")
    tracker.artifact(tmp_path / "report.md", "reports")
    tracker.finish()
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["git_commit"] == "abc"
    assert len(run.data.params) == len(flatten(config)) > 90
    assert run.data.params["learner.lr"] == "1e-05" and run.data.params["reward.terms.mse.weight"] == "1.0"
    assert run.data.metrics == {"reward": 1.0, "round": 5.0, "final/frechet": 12.5}
    artifacts = {a.path for a in MlflowClient(tracker.uri).list_artifacts(tracker.run_id)}
    assert artifacts >= {"reports", "images"}
    assert run.info.artifact_uri.startswith((file.parent / "mlartifacts").as_uri())


def test_the_page_of_a_run_opens_with_its_curves(tracker: Tracker) -> None:
    """MLflow charts groups in the order of their names, in the view for the training of models."""
    experiment = tracker.client.get_experiment(tracker.experiment)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    row = {
        "round": 3,
        "phase": "policy",
        "validation/reward": 1.0,
        "reward/mean": 2.0,
        "advantage/std": 3.0,
        "staleness": 0,
    }
    assert charted(row) == {
        "validation/reward": 1.0,
        "reward/mean": 2.0,
        "workings/advantage/std": 3.0,
        "workings/staleness": 0,
    }
    assert sorted({*charted(row), "verdict/frechet"})[:3] == ["reward/mean", "validation/reward", "verdict/frechet"]


def test_a_run_says_what_it_is_and_what_it_used(tracker: Tracker) -> None:
    tracker.describe("| arm |" + 6000 * "x")
    tracker.inputs([Input("captions", "training", "captions.txt", "abc", {"training": 3})])
    run = tracker.client.get_run(tracker.run_id)
    assert len(run.data.tags["mlflow.note.content"]) == 5000
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.profile) == ("captions", "abc", '{"training": 3}')
    assert "captions.txt" in used.dataset.source and used.tags[0].value == "training"


@pytest.mark.slow
@pytest.mark.parametrize("takes", [["label"], [], ["caption", "picture"]])
def test_a_logged_student_has_its_own_metrics(
    takes: list[str], tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has neither those that the run had at step 0 nor any other of the run's."""
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model_index.json").write_text("{}")
    tracker.metrics({"reward/mean": -1.0}, 0)
    tracker.flush()
    for version in (1, 2):
        log_student(
            tracker,
            tmp_path / "exported",
            takes=takes,
            image_shape=(1, 4, 6),
            step=8,
            metrics={"verdict/frechet": 12.5},
            name=f"first-{len(takes)}",
        )
        registered = tracker.client.get_model_version(f"first-{len(takes)}", str(version))
        logged = tracker.client.get_logged_model(registered.source.removeprefix("models:/"))
        assert {metric.key: metric.value for metric in logged.metrics} == {"verdict/frechet": 12.5}
        assert logged.source_run_id == tracker.run_id
        outputs = tracker.client.get_run(tracker.run_id).outputs.model_outputs
        assert logged.model_id in [output.model_id for output in outputs]
    assert tracker.client.get_run(tracker.run_id).data.metrics["verdict/frechet"] == 12.5
    found = Model.load(logged.artifact_location.removeprefix("file://")).signature
    assert found.inputs.input_names() == ["seed", *takes] and found.outputs.inputs[0].shape == (-1, 1, 4, 6)
    assert not caplog.records and not Path("mlflow.db").exists()


@pytest.mark.slow
def test_the_machine_is_sampled_into_the_run(tracker: Tracker, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that left, as MLflow's does where the store is away, is started again and counts on."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    client, key = MlflowClient(uri), "system/cpu_utilization_percentage"

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 60
        while len(client.get_metric_history(tracker.run_id, key)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(tracker: Tracker) -> None:
        tracker.finish()
        deadline = time.monotonic() + 60
        while not tracker.sampler.left:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    tracker.watch_machine()
    sampler = tracker.sampler
    tracker.watch_machine()
    assert tracker.sampler is sampler is not None
    wait_for(2)
    end(tracker)
    before = len(client.get_metric_history(tracker.run_id, key))
    resumed = Tracker(uri, "tests", "run", tracker.run_id)
    resumed.watch_machine()
    wait_for(before + 2)
    end(resumed)
    found = client.get_metric_history(tracker.run_id, key)
    assert len({m.step for m in found}) == len(found)
    names = set(client.get_run(tracker.run_id).data.metrics)
    assert {"system/system_memory_usage_percentage", "system/disk_usage_percentage"} <= names


def test_a_killed_run_goes_on(tracker: Tracker, uri: str) -> None:
    def status() -> str:
        return str(MlflowClient(uri).get_run(tracker.run_id).info.status)

    assert status() == "RUNNING"
    tracker.finish("KILLED")
    assert status() == "KILLED"
    resumed = Tracker(uri, "tests", "run", tracker.run_id)
    assert status() == "RUNNING"
    resumed.finish("FAILED")
    assert status() == "FAILED"


@pytest.mark.parametrize(
    ("what", "reason"),
    [("directory", "unable to open"), ("corrupt", "file is not a database"), ("below a file", "File exists|Not a dir")],
)
def test_a_store_that_cannot_be_used_is_named_at_once(what: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    if what == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"not a database" * 100)
    if what == "below a file":
        path = path / "mlflow.db"
    began = time.monotonic()
    with pytest.raises(TrackingError, match=rf"sqlite:///{path} cannot be used .*({reason}).*tracking.uri=off"):
        Tracker(f"sqlite:///{path}", "tests", "run")
    assert time.monotonic() - began < 5


def test_a_locked_store_is_named(uri: str, file: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.05)
    began = time.monotonic()
    with locked(file), pytest.raises(TrackingError, match=rf"sqlite:///{file}.* cannot be used .*database is locked"):
        Tracker(uri, "tests", "run")
    with locked(file), pytest.raises(TrackingError, match="database is locked"):
        Tracker(uri, "tests", "run", tracker.run_id)
    assert time.monotonic() - began < 5


def test_a_run_that_the_store_does_not_have(uri: str) -> None:
    with pytest.raises(TrackingError, match="0123456789"):
        Tracker(uri, "tests", "run", "0123456789" * 3)


def test_a_deleted_experiment_is_named_with_its_remedies(uri: str, file: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    old = Tracker(uri, "deleted", "run")
    number = client.get_experiment_by_name("deleted").experiment_id
    client.delete_experiment(number)
    remedy = f"restore it by `MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {number}`, or choose"
    with pytest.raises(TrackingError, match="the MLflow experiment 'deleted' is deleted in sqlite:") as told:
        Tracker(uri, "deleted", "run")
    assert remedy in str(told.value)
    with pytest.raises(TrackingError, match="'deleted', which holds this run, is deleted") as told:
        Tracker(uri, "deleted", "run", old.run_id)
    assert remedy in str(told.value)
    client.restore_experiment(number)
    Tracker(uri, "deleted", "run", old.run_id).finish()
    client.delete_run(old.run_id)
    with pytest.raises(TrackingError, match=f"the MLflow run {old.run_id} is deleted") as told:
        Tracker(uri, "deleted", "run", old.run_id)
    assert f"mlflow runs restore --run-id {old.run_id}`" in str(told.value)


def test_a_look_at_a_store_creates_nothing(uri: str, file: Path, tracker: Tracker, tmp_path: Path) -> None:
    def state() -> tuple[set[Path], str]:
        with sqlite3.connect(file) as connection:
            dump = "\n".join(connection.iterdump())
        connection.close()
        return set(tmp_path.rglob("*")), dump

    before, secret = state(), "hush-8"
    assert look(uri) == f"{uri} answers"
    assert (
        look(f"sqlite:///{tmp_path}/no/mlflow.db")
        == f"sqlite:///{tmp_path}/no/mlflow.db is not there yet; a run creates it"
    )
    assert state() == before
    sqlite3.connect(tmp_path / "empty.db").execute("VACUUM")
    assert look(f"sqlite:///{tmp_path}/empty.db").endswith("answers and is empty; a run creates its tables")
    assert state()[0] - before[0] == {tmp_path / "empty.db"} and not (tmp_path / "empty.db").stat().st_size > 4096
    (tmp_path / "empty.db").write_bytes(b"not a database" * 100)
    with pytest.raises(TrackingError, match=r"empty\.db cannot be used .*file is not a database"):
        look(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(TrackingError, match=r"http://\*\*\*@127\.0\.0\.1:9 cannot be used") as told:
        look(f"http://me:{secret}@127.0.0.1:9")
    assert secret not in "".join(traceback.format_exception(told.value))


@pytest.mark.slow
def test_a_logged_model_leaves_mlflow_s_own_uri_as_it_was(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logged = tracker.client.create_logged_model(tracker.experiment, "student", tracker.run_id)
    logged_student._register(tracker, logged.model_id, "registered")
    assert tracker.client.get_model_version("registered", "1").source == f"models:/{logged.model_id}"
    assert "MLFLOW_TRACKING_URI" not in os.environ and not mlflow.is_tracking_uri_set()


def test_the_uri(tmp_path: Path) -> None:
    assert load(None, [f"run.root={tmp_path}/runs"]).tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert load(None, ["tracking.uri=off"]).tracking_uri is None
    assert load(None, ["tracking.uri=http://127.0.0.1:5000"]).tracking_uri == "http://127.0.0.1:5000"


def test_flatten() -> None:
    tree = {"a": 1, "b": {"c": None, "d": {"e": True}}, "f": {}, "g": [1, {"h": 2}]}
    assert flatten(tree) == {"a": "1", "b.c": "None", "b.d.e": "True", "f": "{}", "g": "[1, {'h': 2}]"}
    assert flatten(Term(options={"x": {"y": 1}})) == {"weight": "1.0", "normalise": "none", "options.x.y": "1"}


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path: Path) -> None:
    own, installed = tmp_path / "redif_ray", tmp_path / ".venv" / "site-packages" / "redif_ray"
    for package in (own, installed):
        package.mkdir(parents=True)
    assert git_commit(own) is None

    def git(*words: str) -> str:
        identity = ("-c", "user.name=x", "-c", "user.email=x@y")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (own / "a").write_text("1")
    git("add", "redif_ray/a")
    git("commit", "-m", "a")
    (own / "untracked").write_text("1")
    assert git_commit(own) == git("rev-parse", "HEAD")
    (own / "a").write_text("2")
    assert git_commit(own) == git("rev-parse", "HEAD") + "-dirty"
    assert git_commit(installed) is None  # an environment in somebody's repository, whose commits are of something else
