"""The student as an MLflow model, from code.

`predict` takes rows with a `seed` and, if the student has classes, a `label`, or if it is told captions, a `caption`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import mlflow
import numpy as np
import pandas as pd
import torch


class Student(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.folder = Path(context.artifacts["student"])
        self.settings = json.loads((self.folder / "redif.json").read_text())
        index = json.loads((self.folder / "model_index.json").read_text())
        part = "transformer" if "transformer" in index else "unet"
        self.scheduler = index["scheduler"][1]
        self.captions = "text_encoder" in index
        if self.captions:
            kind = getattr(diffusers, index["_class_name"])
            self.pipeline = kind.from_pretrained(self.folder, dtype=torch.float32, use_safetensors=True)
            self.pipeline.set_progress_bar_config(disable=True)
            return
        self.network = getattr(diffusers, index[part][1]).from_pretrained(self.folder / part).eval()

    @torch.no_grad()
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> np.ndarray:
        """Images [n, C, H, W] float32 in [0, 1], one a row of a data frame with a column `seed` and the condition's."""
        if self.captions:
            return self._captions(model_input)
        scheduler = getattr(diffusers, self.scheduler).from_pretrained(self.folder / "scheduler")
        edm = self.scheduler == "EDMEulerScheduler"
        sigmas = times = torch.tensor(self.settings["sigmas"])
        if not edm:
            scheduler.set_timesteps(timesteps=self.settings["timesteps"])
            times = scheduler.timesteps
        size, channels = self.network.config.sample_size, self.network.config.in_channels
        noise = [
            torch.randn(channels, size, size, generator=torch.Generator().manual_seed(int(seed)))
            for seed in model_input["seed"]
        ]
        x = torch.stack(noise) * (sigmas[0] if edm else scheduler.init_noise_sigma)
        guidance, clip = self.settings["guidance"], self.settings["clip_sample_range"]
        labels = [torch.tensor([int(v) for v in model_input["label"]])] if "label" in model_input else []
        if guidance != 1:  # the second half of the batch has the label "no class"
            labels = [torch.cat([labels[0], torch.full_like(labels[0], self.network.config.num_embeds_ada_norm)])]
        copies = 1 if guidance == 1 else 2
        said = times[: len(sigmas) - 1] if "told" not in self.settings else torch.tensor(self.settings["told"])
        for t, at, sigma, following in zip(times, said, sigmas, sigmas[1:], strict=False):
            told = (scheduler.precondition_noise(at) if edm else at).expand(copies * len(x))
            scaled = scheduler.precondition_inputs(x, at) if edm else scheduler.scale_model_input(x, t)
            scaled = scaled.repeat(copies, 1, 1, 1)
            named = {"class_labels": labels[0]} if labels else {}
            output = self.network(scaled, told, **named).sample[:, :channels]
            if guidance != 1:
                cond, uncond = output.chunk(2)
                output = uncond + guidance * (cond - uncond)
            if edm:
                x0 = scheduler.precondition_outputs(x, output, at)
            else:
                x0 = scheduler.step(output, t, x).pred_original_sample
            x0 = x0 if clip is None else x0.clamp(-clip, clip)
            # Euler's update without the difference of sigmas, which in float32 loses three digits from sigma = 2e4
            x = x0 + (x - x0) * following / sigma
        return (x / (sigmas[-1] ** 2 + 1) ** 0.5 / 2 + 0.5).clamp(0, 1).numpy()

    def _captions(self, rows: pd.DataFrame) -> np.ndarray:
        flow = self.scheduler == "FlowMatchEulerDiscreteScheduler"
        levels = {"sigmas": self.settings["sigmas"][:-1]} if flow else {"timesteps": self.settings["timesteps"]}
        generators = [torch.Generator().manual_seed(int(seed)) for seed in rows["seed"]]
        images = self.pipeline(
            list(rows["caption"]), generator=generators, guidance_scale=self.settings["guidance"], output_type="np",
            **levels,
        ).images
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


mlflow.models.set_model(Student())
