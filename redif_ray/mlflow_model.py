"""The student as an MLflow model; MLflow logs this file as the model's code.

`predict` takes rows with a `seed` and, if the student has classes, a `label`, or if it takes captions, a `caption`, and
if it changes pictures, a `picture`, the bytes of an image file.
"""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import diffusers
import mlflow
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps


class Student(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["student"])
        index = json.loads((folder / "model_index.json").read_text())
        self.captions = "text_encoder" in index
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if not self.captions:
            self.student = _sampler(folder).Student(folder, device)
            return
        self.settings = json.loads((folder / "redif.json").read_text())
        kind = getattr(diffusers, index["_class_name"])
        dtype = getattr(torch, self.settings["gpu_dtype"]) if device == "cuda" else torch.float32
        self.pipeline = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> np.ndarray:
        """Return images [n, C, H, W] float32 in [0, 1], one per row.

        model_input: the columns of the model's signature, `seed`, and `label`, or `caption` and `picture`, where the
            student takes conditions.
        """
        generators = [torch.Generator().manual_seed(int(seed)) for seed in model_input["seed"]]
        if self.captions:
            pictures = list(model_input["picture"]) if "picture" in model_input else None
            return self._captions(list(model_input["caption"]), generators, pictures)
        noise = torch.stack([torch.randn(self.student.shape, generator=generator) for generator in generators])
        labels = torch.tensor([int(v) for v in model_input["label"]]) if "label" in model_input else None
        images: np.ndarray = self.student(noise, labels).numpy()
        return images

    def _captions(
        self, captions: list[str], generators: list[torch.Generator], pictures: list[bytes] | None
    ) -> np.ndarray:
        """Sample with diffusers' own pipeline, as the code of the model card does."""
        call = self.settings["pipeline_call"].items()
        each = {key: [value] * len(captions) if isinstance(value, str) else value for key, value in call}
        if pictures is not None:
            size = self.settings["pipeline_call"]["width"], self.settings["pipeline_call"]["height"]
            each["image"] = [ImageOps.fit(Image.open(io.BytesIO(data)).convert("RGB"), size) for data in pictures]
        images = self.pipeline(prompt=captions, generator=generators, output_type="np", **each).images
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _sampler(folder: Path) -> Any:
    """Import the `sample.py` of an exported student. Raises FileNotFoundError if the folder has none."""
    path = folder / "sample.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, since the student's family comes from another package; sample it with that "
            "package and redif-ray, as the code in its README.md does"
        )
    spec = importlib.util.spec_from_file_location("student_sample", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(Student())
