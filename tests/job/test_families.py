"""Families that are neither the demo's network nor its noise process go through the whole pipeline, and resume."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from diffusers import DiffusionPipeline
from smoke_runs import initial_sha256, last_weights, plain_weights, smoke, summary, train
from tiny_models import normal
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.config import Config
from redif_ray.data.conditions import share
from redif_ray.diffusion import schedules, solvers
from redif_ray.job.distill import distill
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student, set_weights

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.usefixtures("cluster")]

CAPTIONS = [f"a picture of {i}" for i in range(40)]
GUIDED = ("teacher.guidance=2.5", "student.guidance=2.5")
WHOLE = "sd"  # not resumed


def trained(config: Config, folder: Path) -> DiffusionModel:
    student = make_student(load_model(config.teacher.model), config.student.lora)
    set_weights(student, unpack("deploy", load_checkpoint(folder / "checkpoints" / "best")[0]))
    return student


def loaded(teacher: Path) -> set[tuple[str, str]]:
    """(class of an actor, part) of all that the logs of Ray's processes say was loaded of this pipeline."""
    found = set()
    for path in Path(ray._private.worker.global_worker.node.get_logs_dir_path()).glob("worker-*.err"):
        text = path.read_text(errors="replace")
        actor = re.search(r"^:actor_name:(\w+)", text, re.MULTILINE)
        parts = re.findall(rf"^{re.escape(str(teacher))}/(\w+) is loaded$", text, re.MULTILINE)
        found |= {(actor[1] if actor else path.name, part) for part in parts}
    return found


def resumed(config: Config, folder: Path) -> str:
    """Checksum of the last weights, from the last checkpoint but one on."""
    shutil.rmtree(sorted((folder / "checkpoints").glob("round-*"))[-1])
    shutil.rmtree(folder / "student")
    (folder / "summary.json").unlink()
    return last_weights(distill(config, resume=True))


def test_edm_with_heun_karras_and_adapters(root: Path) -> None:
    """Class-conditional EDM: Heun's teacher, ancestral student, LoRA, a judge without data; what the export holds."""
    teacher = write_edm(root / "edm", channels=3)
    config = smoke(
        root,
        "edm-run",
        f"teacher.model={teacher}",
        "teacher.solver=heun",
        "teacher.schedule=karras",
        "student.schedule=karras",
        "student.lora={rank: 2, targets: [conv1]}",
        "evaluation.judge=random-features",
    )
    folder = distill(config)
    found = summary(folder)
    last = last_weights(folder)
    assert last != initial_sha256(config)
    assert (found["arms"]["student"]["nfe"], found["arms"]["teacher_full"]["nfe"]) == (2, 7)
    student, exported = trained(config, folder), load_model(folder / "student")
    x, level = 20 * normal(3, 3, 8, 8), student.process.at(torch.tensor(20.0))
    own, again = (model.predict(x, level, model.encode([0, 1, 2])).x0 for model in (student, exported))
    torch.testing.assert_close(again, own, rtol=1e-4, atol=1e-4)
    assert resumed(config, folder) == last


@pytest.mark.parametrize(
    ("name", "write", "lora"),
    [
        (WHOLE, write_sd, "student.lora={rank: 2, alpha: 5, targets: [to_v, conv1]}"),
        ("sdxl", write_sdxl, "student.lora={rank: 0}"),
        ("sd3", write_sd3, "student.lora={rank: 2, alpha: 5, targets: [to_q, to_v]}"),
    ],
)
def test_text_to_image(root: Path, name: str, write: Callable[[Path], Path], lora: str) -> None:
    """Guided, with captions from a file; plain diffusers samples what it exports as the student does.

    Reward workers alone load what encodes captions and decodes.
    """
    captions = root / f"{name}.txt"
    captions.write_text("\n".join(CAPTIONS))
    config = smoke(
        root,
        f"{name}-run",
        f"teacher.model={write(root / name)}",
        lora,
        *GUIDED,
        f"conditions.source={captions}",
        "conditions.held_out=0.3",
        "evaluation.judge=random-features",
    )
    if name != WHOLE:
        train(config, until=2)
    folder = distill(config, resume=name != WHOLE)
    found = summary(folder)
    assert last_weights(folder) == plain_weights(config) != initial_sha256(config)
    assert (found["arms"]["student"]["nfe"], found["arms"]["teacher_full"]["nfe"]) == (4, 8)
    parts = {p for p in load_model(root / name).index if p.startswith(("tokenizer", "text_encoder"))} | {"vae"}
    assert loaded(root / name) == {("RewardActor", part) for part in parts}
    drawn = json.loads((folder / "conditions.json").read_text())
    assert set(drawn["held_out"]) == {c for c in CAPTIONS if share(c) < 0.3}

    student, settings = trained(config, folder), json.loads((folder / "student" / "redif.json").read_text())
    levels = {"sigmas": settings["sigmas"][:-1]} if name == "sd3" else {"timesteps": settings["timesteps"]}
    pipe: Any = DiffusionPipeline.from_pretrained(folder / "student", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipe(CAPTIONS[3], guidance_scale=2.5, generator=generator, output_type="pt", **levels).images
    unit = torch.randn(1, *student.latent_shape, generator=torch.Generator().manual_seed(1))
    encoded, schedule = student.encode(CAPTIONS[3:4]), schedules.explicit(student.process, settings["timesteps"])
    with torch.no_grad():
        expected = student.decode(
            solvers.sample("euler", lambda x, at: student.predict(x, at, encoded, guidance=2.5), unit, schedule)
        )
    torch.testing.assert_close(images, expected, rtol=0, atol=3e-4)
