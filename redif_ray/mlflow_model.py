"""The student as an MLflow model, from code: `predict` takes rows with a `seed` and, if it has classes, a `label`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import torch
from diffusers import EulerDiscreteScheduler


class Student(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        import diffusers

        self.folder = Path(context.artifacts["student"])
        self.settings = json.loads((self.folder / "redif.json").read_text())
        index = json.loads((self.folder / "model_index.json").read_text())
        part = "transformer" if "transformer" in index else "unet"
        self.network = getattr(diffusers, index[part][1]).from_pretrained(self.folder / part).eval()

    @torch.no_grad()
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema
        """Images [n, C, H, W] float32 in [0, 1], one a row of a data frame with columns `seed` and maybe `label`."""
        scheduler = EulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")
        scheduler.set_timesteps(timesteps=self.settings["timesteps"])
        size, channels = self.network.config.sample_size, self.network.config.in_channels
        noise = [
            torch.randn(channels, size, size, generator=torch.Generator().manual_seed(int(seed)))
            for seed in model_input["seed"]
        ]
        x = torch.stack(noise) * scheduler.init_noise_sigma
        labels = {}
        if "label" in model_input:
            labels["class_labels"] = torch.tensor([int(v) for v in model_input["label"]])
        for t in scheduler.timesteps:
            output = self.network(scheduler.scale_model_input(x, t), t.expand(len(x)), **labels).sample
            x = scheduler.step(output[:, :channels], t, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).numpy()


mlflow.models.set_model(Student())
