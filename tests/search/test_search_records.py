"""Trials of a search as nested runs of a real MLflow store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from redif_ray.search.plan import Trial
from redif_ray.search.records import Records
from redif_ray.tracking import Tracker


@pytest.mark.slow
def test_a_trial_is_a_nested_run_and_a_failed_one_says_so(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, "tests", "search")
    records = Records(None, tracker)  # type: ignore[arg-type]  # a trial touches no folder
    records.trial(Trial(0, 4, "start", {"base": "karras"}, [999.0, 300.0], [0.5, 0.25]))
    records.trial(Trial(1, 4, "shape", {"tilt": 0.1}, [999.0, 200.0], [], error="ValueError: no"))
    records.thread.shutdown()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    filter_string = f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], filter_string)}
    good, bad = found["N=4 start 0"], found["N=4 shape 1"]
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.data.metrics == {"distance": 0.25, "distance/0": 0.5, "distance/1": 0.25}
    assert bad.data.params["error"] == "ValueError: no" and not bad.data.metrics


def test_a_trial_that_mlflow_does_not_take_is_told(caplog: pytest.LogCaptureFixture) -> None:
    records = Records(None, None)  # type: ignore[arg-type]

    def refuse(name: str) -> None:
        raise ConnectionError("the server is gone")

    records.write(refuse, "N=4 start 0")
    records.thread.shutdown()
    assert caplog.messages == ["MLflow lacks N=4 start 0: ConnectionError: the server is gone"]
