"""The documentation's family of one's own: from a file, and by its entry point in a process that was not told of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel
from tiny_models import normal, randomise, write_unet

from redif_ray.config import load
from redif_ray.diffusion import schedules
from redif_ray.export import export_student
from redif_ray.loop import PlainLoop
from redif_ray.models import registry
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import fingerprint, load_model, load_teacher, replaced
from redif_ray.planning.paths import absolute
from redif_ray.sample import sample

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            dropout=0.1,
            layers_per_block=1,
            time_embedding_type="fourier",
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    randomise(network)
    ScoreSdeVePipeline(network, ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_latents_of_one_s_own_need_an_encoder_of_one_s_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from own_family import ScoreSdeVe
    from own_family import load as own

    model, images = own(folder, torch.float32), torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
    assert torch.equal(model.decode(model.encode_images(images)), images)
    monkeypatch.delattr(ScoreSdeVe, "encode_images")
    with pytest.raises(ModelError, match=r"ScoreSdeVe has no encode_images.* add it to the family"):
        model.encode_images(images)


def test_it_predicts_what_the_score_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tweedie: x0_hat = x + sigma^2 score."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from own_family import load as own

    model = own(folder, torch.float32)
    x, sigma = 3 * normal(2, 1, 8, 8), torch.tensor([4.0, 0.5], dtype=torch.float64)
    with torch.no_grad():
        found = model.predict(x, model.process.at(sigma), model.encode([None, None]))
        score = model.network(x, sigma.float()).sample
    torch.testing.assert_close(found.x0, x + sigma.float().view(2, 1, 1, 1) ** 2 * score, rtol=1e-4, atol=1e-4)
    assert float(score.abs().max()) > 0.01


@pytest.mark.slow
def test_another_process_finds_it_and_samples_what_was_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from own_family import load as own

    model = own(folder, torch.float32)
    schedule = schedules.build(model.process, 3, "karras")
    student = tmp_path / "student"
    export_student(model, schedule, student, name="own", guidance=1.0, teacher=folder, summary=None)
    card = (student / "README.md").read_text()
    assert "from redif_ray.sample import sample" in card and "EulerDiscrete" not in card

    site = tmp_path / "site" / "own_family-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: own-family\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text("[redif_ray.models]\nScoreSdeVePipeline = own_family:load\n")
    command = [sys.executable, "-m", "redif_ray.cli", "sample", str(student), "--count", "2", "--out", "a.png"]
    paths = os.pathsep.join([str(site.parent), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").stat().st_size > 0
    with pytest.raises(ModelError, match=r"teacher.family=.*:load, or a package with entry point ScoreSdeVePipeline"):
        load_model(student)


@pytest.mark.slow
def test_a_run_takes_it_from_a_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(EXAMPLES / "own_family.py", tmp_path / "family.py")
    monkeypatch.chdir(tmp_path)
    config = absolute(
        load(
            "smoke",
            [
                f"teacher.model={folder}",
                "teacher.family=family.py:load",
                "teacher.schedule=karras",
                "student.schedule=karras",
                "conditions.kind=none",
                "run.root=runs",
                "rollout.groups=2",
                "rollout.unit_groups=2",
                "learner.rounds=1",
                "teacher.steps=3",
            ],
        )
    )
    assert config.teacher.family == f"{tmp_path / 'family.py'}:load"
    loop = PlainLoop(config)
    before = loop.checksum()
    for round in range(loop.plan.rounds):
        loop.round(round)
    assert loop.checksum() != before

    model = load_teacher(config.teacher)
    assert model.family is not None and model.family.name == "family.py:load" and replaced(model) is None
    export_student(
        model,
        schedules.build(model.process, 2, "karras"),
        tmp_path / "student",
        name="own",
        guidance=1.0,
        teacher=folder,
        summary=None,
    )
    card = (tmp_path / "student" / "README.md").read_text()
    assert 'family="family.py:load")' in card and "the file family.py, which" in card and str(tmp_path) not in card
    sample(str(tmp_path / "student"), tmp_path / "a.png", count=2, seed=0, family="family.py:load")
    assert (tmp_path / "a.png").is_file()
    first = fingerprint(model)
    assert first == fingerprint(load_model(folder, family=config.teacher.family))
    (tmp_path / "family.py").write_text((EXAMPLES / "own_family.py").read_text() + "# changed\n")
    assert first != fingerprint(load_teacher(config.teacher))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.py:load", "", "cannot import .*absent.py: FileNotFoundError"),
        ("mine.py:laod", "def load(folder, dtype):\n    pass\n", ".*mine.py has no function 'laod'"),
        ("mine.py:load", "def load(folder, dtype):\n    return 3\n", "returned int; expected a DiffusionModel of"),
        (
            "mine.py:load",
            "def load(folder, dtype):\n    return 1 / 0\n",
            r"failed on .*ZeroDivisionError.*\n.*, in load",
        ),
        ("mine.py:load", "import torch\ntorch.set_default_dtype(torch.float64)\nload = print\n", "it changed torch"),
        ("mine.py:load", "import sys\nsys.exit()\n", "cannot import .*mine.py: SystemExit"),
        ("mine.py", "", "expected package.module:function or path/to/file.py:function"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(folder: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ModelError, match=rf"teacher.family={tmp_path / name}(:|) ?{message}"):
        load_model(folder, family=f"{tmp_path / name}")
    assert torch.get_default_dtype() == torch.float32


def test_a_package_replaces_a_family_of_redif_rays_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "entry_points", installed(["redif_ray.models.pixel:PixelUNet.load"]))
    model = load_model(write_unet(tmp_path / "m"))
    assert replaced(model) == (
        "redif_ray.models.pixel:PixelUNet.load loads the DDPMPipeline in place of redif-ray's own "
        "redif_ray.models.pixel:PixelUNet"
    )
    monkeypatch.setattr(registry, "entry_points", installed(["a:load", "b:load"]))
    with pytest.raises(ModelError, match=r"two packages have an entry point DDPMPipeline .*: a:load, b:load; un"):
        load_model(tmp_path / "m")


def installed(targets: list[str]) -> Callable[..., list[EntryPoint]]:
    return lambda **_: [EntryPoint("DDPMPipeline", target, registry.GROUP) for target in targets]
