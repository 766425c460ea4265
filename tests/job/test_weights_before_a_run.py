"""A weight that is NaN or infinite is named with its file before a run starts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_loras import write_lora
from tiny_pipelines import write_sd

from redif_ray.config import load
from redif_ray.errors import UserError
from redif_ray.job.preflight import preflight
from redif_ray.models.classifier import Classifier, ClassifierError, load_classifier
from redif_ray.models.headers import BLOCK, check_finite
from redif_ray.models.protocol import ModelError


def spoil(path: Path, value: float) -> str:
    """Set the last number of a file's last tensor of real numbers to `value`, and return the tensor's name."""
    held = load_file(path)
    name = max(name for name in held if held[name].is_floating_point())
    held[name] = held[name].clone()
    held[name].view(-1)[-1] = value
    save_file(held, path)
    return name


@pytest.mark.slow
def test_every_file_of_weights_is_looked_through(tmp_path: Path) -> None:
    teacher = write_sd(tmp_path / "teacher")
    shutil.copytree(teacher, tmp_path / "init")
    lora = write_lora(teacher, "sd", tmp_path / "lora")
    fixed = [
        f"teacher.model={teacher}",
        f"teacher.lora={{{lora}: 0.5}}",
        f"student.init={tmp_path / 'init'}",
        "evaluation.judge=random-features",
        f"run.root={tmp_path}/runs",
    ]
    preflight(load("smoke", fixed))
    files = [
        teacher / "unet" / "diffusion_pytorch_model.safetensors",
        teacher / "vae" / "diffusion_pytorch_model.safetensors",
        teacher / "text_encoder" / "model.safetensors",
        tmp_path / "init" / "unet" / "diffusion_pytorch_model.safetensors",
        next((tmp_path / "lora").rglob("*.safetensors")),
    ]
    for path, value in zip(files, [math.nan, math.inf, math.nan, -math.inf, math.nan], strict=True):
        whole = path.read_bytes()
        name = spoil(path, value)
        with pytest.raises(UserError) as error:
            preflight(load("smoke", fixed))
        assert str(path) in str(error.value) and f"weight {name} is NaN or infinite; copy" in str(error.value)
        path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_weights_of_every_dtype(dtype: str, tmp_path: Path) -> None:
    """Also where a tensor is larger than the block in which files are read."""
    kind = getattr(torch, dtype)
    held = {
        "a": torch.ones(3).to(kind),
        "b": torch.ones(BLOCK // kind.itemsize + 5).to(kind),
        "c": torch.ones(0).to(kind),
    }
    path = tmp_path / "w.safetensors"
    save_file(held | {"ids": torch.arange(3)}, path)
    check_finite(path)
    held["b"][-1] = math.nan
    save_file(held, path)
    with pytest.raises(ModelError, match=r"w\.safetensors: weight b is NaN or infinite"):
        check_finite(path)


def test_weights_of_a_classifier(tmp_path: Path) -> None:
    Classifier("conv", "c", (1, 8, 8), ["a", "b"]).save(tmp_path / "c")
    name = spoil(tmp_path / "c" / "model.safetensors", math.nan)
    with pytest.raises(ClassifierError, match=rf"model\.safetensors: weight {name} is NaN or infinite"):
        load_classifier(tmp_path / "c")
