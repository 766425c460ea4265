"""metrics.jsonl and MLflow hold the same rounds, each once, whatever was cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from redif_ray.pipeline.metrics import MetricsWriter
from redif_ray.pipeline.rows import read_rows
from redif_ray.tracking import Tracker


def row(round: int) -> dict[str, Any]:
    return {"round": round, "phase": "policy", "reward/mean": round / 4}


def steps(uri: str, run_id: str) -> list[int]:
    return [m.step for m in MlflowClient(uri).get_metric_history(run_id, "reward/mean")]


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
