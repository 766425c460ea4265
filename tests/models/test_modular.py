"""Folders that diffusers' ModularPipeline saved: the model is that of the ordinary folder of the same parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline, ModularPipeline
from tiny_flux import write_flux
from tiny_flux_2 import write_flux_2_klein
from tiny_models import normal
from tiny_pipelines import write_sd3, write_sdxl
from tiny_qwen_image import write_qwen_image
from tiny_z_image import write_z_image
from torch import Tensor

from redif_ray.config import Lora
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student

WRITERS: dict[str, Callable[[Path], Path]] = {
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux": write_flux,
    "flux-2-klein": write_flux_2_klein,
    "qwen-image": write_qwen_image,
    "z-image": write_z_image,
}
SIZE = (32, 32)


def modular(folder: Path, out: Path) -> Path:
    """Write the pipeline in `folder` as a modular one. It remembers where it was saved, so it is moved afterwards."""
    pipe = ModularPipeline.from_pretrained(str(folder))
    pipe.load_components()
    pipe.save_pretrained(str(out.with_name("saved")), overwrite_modular_index=True)
    out.with_name("saved").rename(out)
    return out


def image(model: DiffusionModel) -> Tensor:
    schedule, unit = schedules.build(model.process, 2, "uniform_trailing"), normal(1, *model.latent_shape)
    with torch.no_grad():
        return model.decode(solvers.sample("euler", model.predictor(model.encode(["a cat"]), 1.0), unit, schedule))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_long(WRITERS, lambda name: name in ("flux-2-klein", "z-image")))
def test_its_image_is_that_of_the_ordinary_folder(name: str, tmp_path: Path) -> None:
    folder = WRITERS[name](tmp_path / "ordinary")
    found = modular(folder, tmp_path / "modular")
    assert not (found / "model_index.json").exists()
    own, other = load_model(found, size=SIZE), load_model(folder, size=SIZE)
    assert type(own) is type(other) and torch.equal(image(own), image(other))


@pytest.mark.slow
def test_its_student_is_an_ordinary_pipeline(tmp_path: Path) -> None:
    found = modular(write_sdxl(tmp_path / "ordinary", zeros=False), tmp_path / "modular")
    teacher = load_model(found)
    assert teacher.index["force_zeros_for_empty_prompt"] is False
    schedule, student = schedules.build(teacher.process, 2, "uniform_trailing"), make_student(teacher, Lora())
    export_student(student, schedule, tmp_path / "out", name="s", guidance=1.0, teacher=found, summary=None)
    assert torch.equal(image(load_model(tmp_path / "out")), image(teacher))
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").text_encoder_2 is not None


@pytest.mark.slow
def test_parts_elsewhere_are_named(tmp_path: Path) -> None:
    found = modular(write_sdxl(tmp_path / "ordinary"), tmp_path / "modular")
    shutil.rmtree(found / "vae")
    path = found / "modular_model_index.json"
    index = json.loads(path.read_text())
    index["vae"] = [None, None, index["vae"][2] | {"pretrained_model_name_or_path": "org/other"}]
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"elsewhere: vae \('org/other'\); expected all in this folder"):
        load_model(found)
    path.write_text(json.dumps(index | {"_class_name": "WanModularPipeline", "vae": 1}))
    with pytest.raises(ModelError, match="is a WanPipeline; expected one of"):
        load_model(found)
