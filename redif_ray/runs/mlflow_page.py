"""The page of a run in MLflow, told without MLflow, which takes seconds to import."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from redif_ray.config import Config

LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` serves unless told otherwise
SERVED = ("sqlite:", "postgresql", "mysql", "mssql")  # stores that `mlflow ui` can show


def charts(experiment: str, run_id: str) -> str:
    """Return the path, on a server of MLflow, of a run's charts.

    MLflow 3 shows an experiment in one of two views. Only the view for the training of models has charts of a run.
    """
    return f"#/experiments/{experiment}/runs/{run_id}/model-metrics?workflowType=machine_learning"


def mlflow_page(config: Config, state: Mapping[str, Any]) -> list[str]:
    """Return the lines that say how to open a run in MLflow; none without tracking.

    state: the state of the run folder.
    """
    uri, run_id = config.tracking_uri, state.get("mlflow_run_id")
    if run_id is None:
        return []
    page = state.get("mlflow_page")
    if uri is None or page is None:
        return [f"run {run_id} at {uri or 'a store of an earlier start'}"]
    if uri.startswith(("http://", "https://")):
        return [f"{uri.rstrip('/')}/{page}"]
    if uri.startswith(SERVED):
        return [f"mlflow ui --backend-store-uri {shlex.quote(uri)}", f"{LOCAL}/{page}"]
    return [f"run {run_id} at {uri}"]
