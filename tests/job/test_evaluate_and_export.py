"""`redif evaluate` and `redif export` on a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray_jobs import ran
from rich.console import Console
from smoke_runs import summary
from tiny_encoders import write_dino

from redif_ray.config import ConfigError
from redif_ray.job.evaluate import evaluate
from redif_ray.job.export import export_checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def test_evaluated_again_it_measures_the_same(first: Path, tmp_path: Path) -> None:
    """And the diversity besides, where it is asked for."""
    before = (first / "summary.json").read_bytes()
    dino = f"evaluation.diversity={{encoder: {write_dino(tmp_path / 'dino')}, conditions: 5, noises: 3}}"
    path = evaluate(first, ["reward.max_workers=1", dino], checkpoint="best", console=Console())
    found, expected = json.loads(path.read_text()), summary(first)
    assert path.name == "evaluation-40.json"
    assert {key: found[key] for key in ("arms", "limits", "judge")} == {
        key: expected[key] for key in ("arms", "limits", "judge")
    }
    assert found["notes"]["student_gain"] == expected["notes"]["student_gain"]
    assert (first / "summary.json").read_bytes() == before
    diversity = found["diversity"]
    assert expected["diversity"] is None and (diversity["encoder"], diversity["conditions"]) == ("dino", 5)
    assert 0 < diversity["change_se"] < diversity["student"] != diversity["teacher"] > 0


@pytest.mark.long
def test_a_judge_without_data_compares_with_the_teacher_s_other_images(first: Path) -> None:
    """The full teacher is then its own law: within its reference's distance from itself, far below the untrained."""
    options = ["evaluation.judge=random-features", "evaluation.held_out=200", "evaluation.batch=50"]
    found = json.loads(evaluate(first, options, checkpoint="best", console=Console()).read_text())
    full, few = found["arms"]["teacher_full"], found["arms"]["teacher_few"]
    assert found["judge"] == "random-features" and full["class_accuracy"] is None
    assert full["frechet"] < 0.6 * few["frechet"]
    assert full["paired"]["pixel_mse"] == 0  # other noises are compared with, not its own images


def test_an_evaluation_measures_this_run(first: Path) -> None:
    with pytest.raises(ConfigError, match=r"student.steps=3: an evaluation may change evaluation"):
        evaluate(first, ["student.steps=3"], checkpoint="best", console=Console())


def test_export_writes_the_student_again(first: Path, tmp_path: Path) -> None:
    out = export_checkpoint(first, tmp_path / "student", "best")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (first / "student" / weights).read_bytes()
    untrained = export_checkpoint(first, tmp_path / "warm", "warm_start")
    assert (untrained / weights).read_bytes() != (out / weights).read_bytes()


@pytest.mark.long
def test_an_evaluation_as_a_ray_job(first: Path) -> None:
    assert "written to" in ran("jobs/evaluate.py", str(first), "evaluation.held_out=30")
    assert json.loads((first / "evaluation-30.json").read_text())["held_out"] == 30
