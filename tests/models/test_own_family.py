"""The documentation's family of another package, found by its entry point in a process that was not told of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel
from tiny_models import normal, randomise

from redif_ray.diffusion import schedules
from redif_ray.export import export_student
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        network = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, dropout=0.1,
            layers_per_block=1, time_embedding_type="fourier", down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    randomise(network)
    ScoreSdeVePipeline(network, ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_it_predicts_what_the_score_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tweedie: x0_hat = x + sigma^2 score."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from own_family import load

    model = load(folder, torch.float32)
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
    from own_family import load

    model = load(folder, torch.float32)
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
    with pytest.raises(ModelError, match="or a package with entry point ScoreSdeVePipeline"):
        load_model(student)
