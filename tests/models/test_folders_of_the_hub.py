"""Folders as people have them: weights of a variant only, all files in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, StableDiffusionXLPipeline
from tiny_models import normal, write_unet
from tiny_pipelines import write_sd, write_sdxl

from redif_ray.config import Lora, Teacher
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.export.carried import carried
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import fingerprint, load_model, teacher_outline
from redif_ray.models.student import make_student

pytestmark = pytest.mark.slow


def image(model: DiffusionModel, conditions: list[str | int | None]) -> torch.Tensor:
    schedule = schedules.build(model.process, 3, "uniform_trailing")
    predict = model.predictor(model.encode(conditions), 1.0)
    with torch.no_grad():
        return model.decode(solvers.sample("euler", predict, normal(len(conditions), *model.latent_shape), schedule))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_that_has_fp16_files_only_is_read_and_exported(sharded: bool, tmp_path: Path) -> None:
    whole = write_sdxl(tmp_path / "whole")
    size = "20KB" if sharded else "10GB"
    pipe: StableDiffusionXLPipeline = DiffusionPipeline.from_pretrained(whole)
    pipe.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=size)
    files = {path.name for path in (tmp_path / "half" / "unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors" not in files and any("fp16" in name for name in files)
    teacher = load_model(tmp_path / "half")
    own, other = image(teacher, ["a cat"]), image(load_model(whole), ["a cat"])
    assert torch.allclose(own, other, atol=1e-5)  # shards lie at other addresses, and products round by these
    outline = teacher_outline(Teacher(model=str(tmp_path / "half")), check=True)
    assert all(p.is_meta for p in outline.network.parameters())
    schedule = schedules.build(teacher.process, 3, "uniform_trailing")
    export_student(
        make_student(teacher, Lora()),
        schedule,
        tmp_path / "out",
        name="few",
        guidance=1.0,
        teacher=tmp_path / "half",
        summary=None,
    )
    again = DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)  # no variant has to be named
    assert again.text_encoder_2 is not None
    assert torch.allclose(image(load_model(tmp_path / "out"), ["a cat"]), image(teacher, ["a cat"]), atol=1e-5)


def test_a_folder_of_two_variants_is_refused(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "sd")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    load_model(folder)  # the files without a variant are read
    file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(ModelError, match=r"holds the variants bf16, fp16; keep the files of one"):
        load_model(folder)


def test_a_model_with_all_files_in_one_folder_is_read(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 and its kin lie so on the hub."""
    nested = write_unet(tmp_path / "nested")
    flat = tmp_path / "flat"
    shutil.copytree(nested / "unet", flat)
    shutil.copy(nested / "scheduler" / "scheduler_config.json", flat)
    shutil.copy(nested / "model_index.json", flat)
    DDPMPipeline.from_pretrained(flat)  # diffusers reads it too
    assert torch.equal(image(load_model(flat), [None]), image(load_model(nested), [None]))
    assert fingerprint(load_model(flat)) == fingerprint(load_model(nested))
    assert teacher_outline(Teacher(model=str(flat)), check=True).latent_shape == (2, 8, 8)


def test_an_export_takes_the_weights_that_are_read_and_no_variant_beside_them(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "model")
    expected = {file.name for file in carried(load_model(folder), folder)}
    for part in ("vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        for variant in (".fp16", ".non_ema", ".fp16-00001-of-00001"):
            shutil.copy(file, file.with_name(f"{file.stem}{variant}.safetensors"))
        file.with_name(f"{file.name}.index.fp16.json").write_text("{}")
    assert {file.name for file in carried(load_model(folder), folder)} == expected
