"""Teachers whose files hold 32 or 16 bits: loaded, distilled in float32, exported, and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_long
from safetensors.torch import load_file
from short_runs import FAMILIES, LATER, SHORT, adapted, flat, rounds, written
from smoke_runs import smoke
from tiny_edits import kept
from tiny_models import normal
from torch import Tensor

from redif_ray.data.pictures import PictureStore
from redif_ray.job.export import export_weights
from redif_ray.models.edit import EditModel
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model, load_teacher

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.slow
ROUNDING = 2e-5  # of merged adapters; full weights agree bit for bit


def dtypes(folder: Path) -> dict[str, set[torch.dtype]]:
    """The dtypes of the weights in each folder of a pipeline."""
    found: dict[str, set[torch.dtype]] = {}
    for path in folder.glob("*/*.safetensors"):
        found.setdefault(path.parent.name, set()).update(value.dtype for value in load_file(path).values())
    return found


def images(model: DiffusionModel, guidance: float) -> tuple[Tensor, Tensor]:
    """What the model predicts in the middle of its noise, and the image of it."""
    level = model.process.at(torch.tensor(5.0 if model.prediction_type == "sample" else 500.0))
    x = level.sigma.float() * normal(2, *model.latent_shape)
    conditions: list[Any] = ["a cat", None] if model.takes_captions else [0, 1] if model.num_classes else [None, None]
    if isinstance(model, EditModel):
        model.pictures = PictureStore()
        conditions = list(kept(model.pictures, ["a cat", "a dog"], (model.image_shape[1], model.image_shape[2])))
    with torch.no_grad():
        x0 = model.predict(x, level, model.encode(conditions), guidance=guidance).x0
        return x0, model.decode(x0)


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.long), True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_long(
        [(name, dtype) for name in FAMILIES for dtype in DTYPES],
        lambda name, dtype: name not in LATER and DTYPES.index(dtype) == FAMILIES.index(name) % len(DTYPES),
    ),
)
def test_a_teacher_is_distilled_whatever_its_files_hold(
    name: str, dtype: torch.dtype, lora: bool, tmp_path: Path
) -> None:
    overrides = (*written(name, tmp_path, dtype=dtype), *SHORT, "warm_start.lr=2e-3", *(adapted(name) if lora else ()))
    given = dtypes(tmp_path / "teacher")
    assert all(found <= {dtype, torch.int64} for found in given.values())  # integers: positions of a text encoder
    config = smoke(tmp_path, "run", *overrides)
    loop, before, after = rounds(config)
    assert (flat(after) - flat(before)).norm() > 1e-3

    folder = tmp_path / "student"
    export_weights(load_teacher(config.teacher), config, after, folder, None)
    assert dtypes(folder) == given | {loop.student.component: {torch.float32}}  # other parts are copies
    expected, found = (images(model, config.student.guidance) for model in (loop.student, load_model(folder)))
    for mine, again in zip(expected, found, strict=True):
        torch.testing.assert_close(again, mine, rtol=1e-5, atol=ROUNDING)
    untrained = images(load_teacher(config.teacher), config.student.guidance)
    assert (untrained[0] - expected[0]).abs().max() > 10 * ROUNDING
