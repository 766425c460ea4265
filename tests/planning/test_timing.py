"""Networks without weights compute on the CPU, and are timed there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, write_sd

from redif_ray.config import Teacher
from redif_ray.evaluation.compute import decode_flops, prediction_flops
from redif_ray.models.folder import without_weights
from redif_ray.models.registry import load_model, teacher_outline
from redif_ray.planning import timing
from redif_ray.planning.timing import cpu_speed, hollow

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hollow_network_computes_as_one_whose_weights_are_zeros(name: str, tmp_path: Path) -> None:
    folder = FAMILIES[name](tmp_path / "m")
    real = load_model(folder)
    with torch.no_grad():
        for value in [*real.network.parameters(), *real.network.buffers()]:
            value.zero_()
    with without_weights():
        outline = load_model(folder, device="meta")
    x = torch.linspace(-1, 1, 2 * torch.Size(real.latent_shape).numel()).reshape(2, *real.latent_shape)
    encoded = {key: torch.zeros_like(value, device="cpu") for key, value in real.blank(2).items()}
    level = real.process.noisiest()
    with torch.no_grad(), hollow(outline.network) as aside:
        found = outline.predict(x, level, encoded)
    torch.testing.assert_close(found.x0, real.predict(x, level, encoded).x0)
    assert aside.seconds > 0
    assert all(value.is_meta for value in [*outline.network.parameters(), *outline.network.buffers()])
    with pytest.raises((NotImplementedError, RuntimeError)):
        outline.predict(x, level, encoded)


def test_what_else_the_machine_does_is_not_counted() -> None:
    """Sleep stands for the time in which other processes have the core."""

    def call() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.01:
            pass
        time.sleep(0.1)

    assert 0.01 <= timing._timed(call, 1) < 0.05


def test_each_way_to_measure_a_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small calls take several times the FLOPs of a matrix product, and one and two busy cores are both timed."""
    teacher = Teacher(model=str(write_sd(tmp_path / "m")))
    outline = teacher_outline(teacher)
    flops, decode = prediction_flops(outline), decode_flops(outline)

    def measured(**limits: Any) -> timing.Speed:
        for name, value in limits.items():
            monkeypatch.setattr(timing, name, value)
        speeds = cpu_speed(teacher, replace(outline), flops, decode, (4, 2), {1, 2}, 2)
        assert set(speeds) == {4, 2}
        return speeds[4]

    loaded = measured()
    without = measured(LARGEST_LOADED=0.0)
    products = measured(LARGEST_LOADED=0.0, LARGEST_TIMED={torch.float32: 0.0})
    for found in (loaded, without, products):
        assert set(found.call) == {1, 2} and all(seconds > 0 for seconds in found.call.values())
    assert 1 <= loaded.threaded <= 2 and without.threaded == products.threaded == 1
    assert loaded.decode == products.decode == decode / flops != without.decode
    assert 0.1 < without.call[1] / loaded.call[1] < 10
