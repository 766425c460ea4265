"""Whole runs on Ray of the families of 2025, and of a student that goes on from another run: end, resume, export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from smoke_runs import last_weights, smoke, summary
from test_families import loaded
from tiny_edits import drawn, write_edits
from tiny_flux import write_kontext
from tiny_flux_2 import write_flux_2_klein
from tiny_krea_2 import write_krea_2
from tiny_qwen_image import write_qwen_image
from tiny_sana import write_sana
from tiny_z_image import write_z_image

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.config import Config
from redif_ray.diffusion.schedules import explicit
from redif_ray.diffusion.solvers import sample
from redif_ray.job.distill import distill
from redif_ray.loop import PlainLoop
from redif_ray.models.edit import EditModel
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student, set_weights
from redif_ray.planning import factory

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.usefixtures("cluster")]
WRITERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "z-image": (write_z_image, "teacher.height=32 teacher.width=32"),
    "flux-2-klein": (write_flux_2_klein, "teacher.height=32 teacher.width=32"),
    "qwen-image": (write_qwen_image, "teacher.height=32 teacher.width=48"),
    "sana": (write_sana, ""),
    "flux-kontext": (write_kontext, "teacher.height=32 teacher.width=32 student.guidance=2.5"),
    "krea-2": (write_krea_2, "teacher.height=32 teacher.width=32"),
}
ALONE = r"""
import re, sys
sys.modules |= dict.fromkeys(["redif_ray", "peft", "ray", "mlflow"])  # None: cannot be imported
import os, torch
torch.set_num_threads(1)
os.chdir(sys.argv[1])
exec(re.search(r"```python\n(.*?)```", open("README.md").read(), re.S).group(1), {})
"""


def recipe(root: Path, name: str, folder: Path, size: str) -> Config:
    if name == "flux-kontext":
        source = write_edits(root / "edits")
    else:
        source = root / "captions.txt"
        source.write_text("\n".join(f"a picture of {'many ' * (i % 7)}{i}" for i in range(40)))
    return smoke(
        root,
        name,
        f"teacher.model={folder}",
        f"conditions.source={source}",
        "evaluation.judge=random-features",
        "teacher.guidance=2.5",
        "student.lora={rank: 2}",
        "learner.rounds=2",
        "learner.microbatch=8",
        "checkpoint={every: 1, keep: 3}",
        *size.split(),
    )


def plain(config: Config) -> str:
    """Checksum of the weights after the last round without Ray; ratios are 1 within the tolerance of `guard`.

    Rows meet other rows in an update than in a rollout, and captions of another length fill them up otherwise.
    """
    loop = PlainLoop(config)
    for round in range(loop.plan.rounds):
        metrics = loop.round(round)
        assert all(abs(value) < 1e-4 for name, value in metrics.items() if "fresh_log_ratio" in name)
    return loop.checksum()


@pytest.mark.parametrize("name", WRITERS)
def test_a_run_ends_as_a_plain_loop_resumes_and_exports_what_diffusers_samples_alone(name: str, root: Path) -> None:
    write, size = WRITERS[name]
    config = recipe(root, name, write(root / f"{name}-teacher"), size)
    folder = distill(config)
    ended, found = last_weights(folder), summary(folder)
    assert {actor for actor, _ in loaded(root / f"{name}-teacher")} == {"RewardActor"}  # which encode and decode
    assert ended == plain(config)
    assert found["arms"]["student"]["nfe"] == 2
    student = make_student(load_model(config.teacher.model, size=config.teacher.size), config.student.lora)
    set_weights(student, unpack("deploy", load_checkpoint(folder / "checkpoints" / "best")[0]))
    exported = load_model(folder / "student")
    own = json.loads((folder / "student" / "redif.json").read_text())
    unit = torch.randn(2, *student.latent_shape, generator=torch.Generator().manual_seed(3))
    images, guidance = [], config.student.guidance
    for model in (student, exported):
        if isinstance(model, EditModel):
            model.pictures = factory.pictures(config)
        encoded = model.encode(factory.conditions(config, model).training[:2])
        with torch.no_grad():
            schedule = explicit(student.process, own["timesteps"])
            images.append(model.decode(sample("euler", model.predictor(encoded, guidance), unit, schedule)))
    assert float((images[0] - images[1]).abs().max()) < 1e-4
    drawn(0).save(folder / "student" / "picture.png")
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder / "student")], capture_output=True, text=True)
    assert done.returncode == 0 and (folder / "student" / "sample.png").is_file(), done.stderr

    shutil.rmtree(sorted((folder / "checkpoints").glob("round-*"))[-1])
    shutil.rmtree(folder / "student")
    (folder / "summary.json").unlink()
    assert last_weights(distill(config, resume=True)) == ended


def test_a_run_goes_on_from_another_runs_student(first: Path, root: Path) -> None:
    """The student starts as the other run's, with its levels, and the untrained arm is that student."""
    config = smoke(root, "second", f"student.init={first}", "student.schedule=init", "warm_start.rounds=0")
    folder = distill(config)
    before, after = summary(first), summary(folder)
    assert after["arms"]["teacher_few"]["paired"] == before["arms"]["student"]["paired"]
    assert last_weights(folder) != before["weights_sha256"]
    own, other = (json.loads((each / "student" / "redif.json").read_text()) for each in (folder, first))
    assert own["timesteps"] == other["timesteps"]
