"""A family that is neither the demo's network nor its noise process goes through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from smoke_runs import initial_sha256, last_weights, smoke, summary
from tiny_models import normal
from tiny_pipelines import write_edm

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student, set_weights
from redif_ray.pipeline.distill import distill

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def test_edm_with_heun_karras_and_adapters(root: Path) -> None:
    """Class-conditional EDM: Heun's teacher, ancestral student, LoRA, a judge without data; what the export holds."""
    teacher = write_edm(root / "edm", channels=3)
    config = smoke(
        root, "edm-run", f"teacher.model={teacher}", "teacher.solver=heun", "teacher.schedule=karras",
        "student.schedule=karras", "student.lora={rank: 2, targets: [conv1]}", "evaluation.judge=random-features",
    )  # fmt: skip
    folder = distill(config)
    found = summary(folder)
    assert last_weights(folder) != initial_sha256(config)
    assert (found["arms"]["student"]["nfe"], found["arms"]["teacher_full"]["nfe"]) == (2, 7)
    student = make_student(load_model(teacher), config.student.lora)
    set_weights(student, unpack("deploy", load_checkpoint(folder / "checkpoints" / "best")[0]))
    exported = load_model(folder / "student")
    x, level = 20 * normal(3, 3, 8, 8), student.process.at(torch.tensor(20.0))
    own, again = (model.predict(x, level, model.encode([0, 1, 2])).x0 for model in (student, exported))
    torch.testing.assert_close(again, own, rtol=1e-4, atol=1e-4)
