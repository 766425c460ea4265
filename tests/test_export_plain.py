"""Exported students of teachers in 16 bits, loaded by the plainest line there is: no dtype, no class."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline
from tiny_flux import write_chroma, write_flux
from tiny_flux_2 import write_flux_2_dev, write_flux_2_klein
from tiny_krea_2 import write_krea_2
from tiny_lumina_2 import write_lumina_2
from tiny_pipelines import write_sd, write_sd3, write_sdxl
from tiny_pixart import write_pixart
from tiny_qwen_image import write_qwen_image
from tiny_sana import write_sana
from tiny_z_image import write_z_image
from torch import Tensor

from redif_ray.config import Lora
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.export.pipeline import CAPTION
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student

pytestmark = pytest.mark.slow
FAMILIES: dict[str, Callable[..., Path]] = {
    "sd": write_sd,
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux": write_flux,
    "chroma": write_chroma,
    "flux-2-klein": write_flux_2_klein,
    "flux-2-dev": write_flux_2_dev,
    "krea-2": write_krea_2,
    "lumina-2": write_lumina_2,
    "pixart": write_pixart,
    "qwen-image": write_qwen_image,
    "sana": write_sana,
    "z-image": write_z_image,
}
WITHOUT_SIZE = ("flux", "chroma", "krea-2", "qwen-image", "z-image")  # in the network's configuration
HALVES = (torch.float16, torch.bfloat16)
OFTEN = {"sdxl": torch.float16, "sd3": torch.bfloat16, "qwen-image": torch.float16}  # the last has nested dtypes


@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_long(itertools.product(FAMILIES, HALVES), lambda name, dtype: OFTEN.get(name) == dtype),
)
def test_a_student_is_one_pipeline_of_float32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    teacher, folder = FAMILIES[name](tmp_path / "teacher", dtype=dtype), tmp_path / "student"
    student: Any = make_student(load_model(teacher, size=(32, 32) if name in WITHOUT_SIZE else None), Lora())
    schedule = schedules.build(student.process, 2, "uniform_trailing")
    export_student(student, schedule, folder, name="x", guidance=1.0, teacher=teacher, summary=None)

    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    found = {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert set(found.values()) == {torch.float32}, found
    call = json.loads((folder / "redif.json").read_text())["pipeline_call"]
    generator = torch.Generator().manual_seed(0)
    image: Tensor = pipe(prompt=CAPTION, output_type="pt", generator=generator, **call).images[0]
    unit = torch.randn(1, *student.latent_shape, generator=torch.Generator().manual_seed(0))
    predict = student.predictor(student.encode([CAPTION]), 1.0)
    with torch.no_grad():
        expected = student.decode(solvers.sample("euler", predict, unit, schedule))[0]
    torch.testing.assert_close(image.float(), expected, rtol=0, atol=5e-4)
