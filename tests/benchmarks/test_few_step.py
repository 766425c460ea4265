"""Students that start as students: the measurements, what is kept, and the comparison seed by seed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import in_process
from benchmarks.few_step import start
from benchmarks.in_process import Kept, Point, Run, fine
from redif_ray.config import load
from redif_ray.models.start import starting_model
from redif_ray.models.student import get_weights

SMALL = ("learner.rounds=2", "evaluation={held_out: 16, search: 4, batch: 8}", "guard.recall_floor=0")


@pytest.mark.parametrize(("cycles", "expected"), [(3, 0.0), (11, 1.0)])
def test_fine_is_the_power_above_half_of_the_nyquist_frequency(cycles: int, expected: float) -> None:
    """Waves of 3 and of 11 cycles in 32 pixels, where 16 are Nyquist's; each has a power of a half a pixel."""
    wave = torch.sin(2 * math.pi * cycles * torch.arange(32, dtype=torch.float64) / 32).expand(2, 1, 32, 32)
    outside = 32 * 32 - int((torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(32)] * 2, indexing="ij")) <= 0.25).sum())
    assert fine(0.5 + wave) * outside / (32 * 32) == pytest.approx(expected / 2, abs=1e-12)


@pytest.mark.long
def test_a_student_is_measured_as_deployed_kept_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(load("smoke", [*SMALL, f"run.root={tmp_path}", "learner.ema=0.5"]))
    points = run.train([0, run.loop.plan.rounds])
    assert [point["rounds"] for point in points] == [0, run.loop.plan.rounds]
    assert points[0]["pixel_mse"] != points[1]["pixel_mse"] and points[0]["fine"] > 0
    run.export(tmp_path / "student")
    started = starting_model(run.loop.reward.teacher, run.config.teacher, str(tmp_path / "student"))
    exported = dict(started.network.named_parameters())
    averages = run.average.weights()
    assert averages.keys() == exported.keys() <= get_weights(run.loop.student).keys()
    assert all(torch.equal(exported[name], value) for name, value in averages.items())
    kept = Kept(tmp_path / "kept.json", tmp_path)
    made = kept.of("a", 0, "smoke", SMALL, four=False)
    monkeypatch.setattr(in_process, "Run", None)  # nothing is made again
    assert Kept(kept.path, tmp_path).of("a", 0, "smoke", SMALL, four=False) == made


@pytest.mark.slow
def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """The 2-step students of the grid are those of B; Student's t for two seeds is 12.706."""

    def point(frechet: float) -> list[Point]:
        return [{"frechet": frechet, "recall": 0.9, "pixel_mse": 0.003}]

    made = {f"from 4 steps, B, seed {seed}": point(15.0 + seed) for seed in (1, 2)}
    made |= {f"from the teacher, 2 B, seed {seed}": point(16.0 + 1.2 * seed) for seed in (1, 2)}
    (tmp_path / "kept.json").write_text(json.dumps(made))
    rows = start(Kept(tmp_path / "kept.json", tmp_path), [1, 2]).splitlines()
    assert rows[2].startswith("| from 4 steps, B | 16.0, 17.0 |  |")
    assert rows[3].startswith("| from the teacher, B | 16.5, 14.8 | ")
    assert rows[4].startswith("| from the teacher, 2 B | 17.2, 18.4 | +1.30 [+0.03, +2.57] |")
