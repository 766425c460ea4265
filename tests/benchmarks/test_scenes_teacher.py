"""The teacher of scenes: its captions, and pictures that the checker calls right."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from tiny_pipelines import run_alone

from benchmarks.scenes.checker import verdict
from benchmarks.scenes.pictures import CAPTIONS, captions, drawn
from benchmarks.scenes.teacher import TEACHER
from redif_ray.diffusion import schedules
from redif_ray.models.registry import load_model
from redif_ray.sample import draw

ROOT = Path(__file__).parents[2]
GUIDANCE = 2.0


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_model(ROOT / TEACHER)


def test_the_shipped_captions_are_those_of_the_training() -> None:
    shipped = (ROOT / CAPTIONS).read_text(encoding="utf-8").splitlines()
    assert shipped == [str(scene) for scene in captions(held_out=False)]


@pytest.mark.slow
@pytest.mark.parametrize(("held_out", "least"), [(False, 0.8), (True, 0.35)])
def test_pictures_are_right(teacher: Any, held_out: bool, least: float) -> None:
    """The card tells 1,000 pictures of each kind; these bounds are four standard errors of 80 pictures below."""
    scenes = drawn(captions(held_out=held_out), 80, seed=11)
    schedule = schedules.build(teacher.process, 20, "uniform_trailing")
    pictures = draw(teacher, schedule, list(range(len(scenes))), [str(scene) for scene in scenes], 0, GUIDANCE)
    assert pictures.shape == (80, 3, 32, 32)
    right = [verdict(picture.numpy(), scene)["whole"] for picture, scene in zip(pictures, scenes, strict=True)]
    assert np.mean(right) > least


@pytest.mark.long
def test_its_card_runs_by_itself(tmp_path: Path) -> None:
    folder = copytree(ROOT / TEACHER, tmp_path / "own")
    run_alone([folder])
    assert (folder / "sample.png").is_file()
