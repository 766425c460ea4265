"""metrics.jsonl and MLflow hold the same rounds, each once, whatever was cut short."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from redif_ray.job.metrics_writer import MetricsWriter
from redif_ray.runs.jsonl import read_rows
from redif_ray.tracking import Tracker


def row(round: int) -> dict[str, Any]:
    return {"round": round, "phase": "policy", "reward/mean": round / 4}


def steps(uri: str, run_id: str) -> list[int]:
    return [m.step for m in MlflowClient(uri).get_metric_history(run_id, "reward/mean")]


@pytest.mark.slow
def test_a_killed_writer_loses_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that were in MLflow's buffer when the process died are sent by the next one, from the file."""
    monkeypatch.setattr("redif_ray.tracking.FLUSH_SECONDS", 1e9)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = Tracker(uri, "tests", "run").run_id
    writer = MetricsWriter(str(tmp_path), uri, "tests", "run", run_id)
    for r in (-1, 0, 1):
        writer.log(row(r))
    assert writer.flush()
    writer.log(row(2))
    writer.log(row(3))  # in the file, not in MLflow: the process dies here
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 4, "pha')
    again = MetricsWriter(str(tmp_path), uri, "tests", "run", run_id)
    assert again.flush()
    assert steps(uri, run_id) == [-1, 0, 1, 2, 3]
    for r in (3, 4):  # replayed from the checkpoint of round 3
        again.log(row(r) | {"reward/mean": 9.0})
    assert again.flush()
    assert steps(uri, run_id) == [-1, 0, 1, 2, 3, 4]
    assert [r["round"] for r in read_rows(tmp_path / "metrics.jsonl")] == [-1, 0, 1, 2, 3, 4]
    assert read_rows(tmp_path / "metrics.jsonl")[4] == row(3)
    assert [r["round"] for r in again.latest(2)] == [3, 4]


@pytest.mark.slow
def test_a_store_that_is_away_when_the_writer_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, uri = tmp_path / "mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"
    run_id = Tracker(uri, "tests", "run").run_id
    kept = store.rename(tmp_path / "kept.db")
    store.mkdir()
    writer = MetricsWriter(str(tmp_path), uri, "tests", "run", run_id)
    writer.log(row(0))
    writer.image("samples", np.zeros((4, 4, 3), np.uint8), 0)
    assert not writer.flush()
    assert f"the MLflow store {uri} cannot be used" in caplog.text and "asked again" in caplog.text
    store.rmdir()
    kept.rename(store)
    writer.log(row(1))
    assert writer.flush()
    writer.log(row(2))
    assert writer.flush()
    assert steps(uri, run_id) == [0, 1, 2]


def test_a_server_that_refuses_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with socket.socket() as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        uri, began = f"http://127.0.0.1:{nobody.getsockname()[1]}", time.monotonic()
        writer = MetricsWriter(str(tmp_path), uri, "tests", "run", "0" * 32)
        writer.log(row(0))
        assert not writer.flush()
    assert time.monotonic() - began < 30


def test_the_writer_has_the_credentials_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a cluster that a run joins do not inherit the driver's environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of this process")
    MetricsWriter(str(tmp_path), None, "tests", "run", None, {"MLFLOW_TRACKING_TOKEN": "of the driver"})
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "of the driver"
