"""An exported student as a model of MLflow, with a signature and its own metrics, and as a version in the registry."""

from __future__ import annotations

import base64
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from redif_ray.tracking import Tracker

log = logging.getLogger(__name__)
NAME = "student"
CODE = Path(__file__).with_name("mlflow_model.py")
REQUIREMENTS = ["torch", "diffusers", "transformers", "numpy", "pandas"]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"  # a white pixel
)
COLUMNS = {  # type, example
    "label": (DataType.long, 0),
    "caption": (DataType.string, "a photo of a cat"),
    "picture": (DataType.binary, PNG),
}


def log_student(
    tracker: Tracker,
    student: Path,
    *,
    takes: Sequence[str],
    image_shape: Sequence[int],
    step: int,
    metrics: Mapping[str, float],
    name: str,
) -> None:
    """Log the folder of an exported student as a model that `mlflow.pyfunc.load_model` loads and samples from.

    takes: columns of conditions in the model's input, beside `seed`; of `COLUMNS`. image_shape: (C, H, W) of images.
    step: the policy's version. metrics: the trained student's own, which are shown with the run and with the model.
    name: of the registered model that gets a new version. A store without a registry gets the model alone.
    """
    client = tracker.client
    params = client.get_run(tracker.run_id).data.params
    model = client.create_logged_model(tracker.experiment, NAME, tracker.run_id, params=params)
    # `mlflow.pyfunc.log_model` would credit the model with whatever the run measured at `step`
    with tempfile.TemporaryDirectory(prefix="redif-mlflow-") as folder:
        mlflow.pyfunc.save_model(
            str(Path(folder) / NAME),
            python_model=str(CODE),
            artifacts={NAME: str(student)},
            pip_requirements=REQUIREMENTS,
            signature=signature(takes, image_shape),
            input_example=pd.DataFrame({"seed": [0]} | {name: [COLUMNS[name][1]] for name in takes}),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=tracker.run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            ),
        )
        client.log_model_artifacts(model.model_id, str(Path(folder) / NAME))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(tracker.run_id, [LoggedModelOutput(model.model_id, step)])
    tracker.summary(metrics, model.model_id)
    _register(tracker, model.model_id, name)


def signature(takes: Sequence[str], image_shape: Sequence[int]) -> ModelSignature:
    """Return what the model takes, a row an image, and what it gives; see `log_student`."""
    columns = [ColSpec(DataType.long, "seed"), *(ColSpec(COLUMNS[name][0], name) for name in takes)]
    images = TensorSpec(np.dtype(np.float32), (-1, *image_shape), "images")
    return ModelSignature(Schema(columns), Schema([images]))


def _register(tracker: Tracker, model_id: str, name: str) -> None:
    """Add the model as a version of the registered model `name`, which is created where there is none."""
    client, default = tracker.client, mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(tracker.store)  # where MLflow looks the model up, whichever store the client has
    try:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        client.create_model_version(name, f"models:/{model_id}", tracker.run_id, model_id=model_id)
    except MlflowException as error:
        log.warning("the student is logged in MLflow, but not registered as %s: %s", name, error.message)
    finally:
        mlflow.set_tracking_uri(default)
