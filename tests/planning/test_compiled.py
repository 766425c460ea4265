"""The blocks that a network repeats are compiled by `networks.compile`, and predictions change by rounding alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_pipelines import write_sd

from redif_ray.config import Config, load
from redif_ray.planning import factory


def compiled_modules(network: torch.nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules() if module._compiled_call_impl is not None}


def config(root: Path, teacher: str, *overrides: str) -> Config:
    made: Config = load("smoke", [f"teacher.model={teacher}", f"run.root={root}", "networks.compile=true", *overrides])
    return made


@pytest.mark.slow
def test_repeated_blocks_are_compiled_and_networks_without_them_as_a_whole(tmp_path: Path) -> None:
    own = config(tmp_path, str(write_sd(tmp_path / "sd")), "conditions.source=emoji", "student.lora.rank=2")
    teacher = factory.frozen(own, "cpu")
    student = factory.student(own, teacher)
    assert compiled_modules(student.network) == {"BasicTransformerBlock"}
    shipped = factory.teacher(config(tmp_path, "fashion-mnist"), "cpu")
    assert compiled_modules(shipped.network) == {type(shipped.network).__name__}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_predict_as_they_did(tmp_path: Path) -> None:
    folder = str(write_sd(tmp_path / "sd"))
    made = [
        factory.teacher(config(tmp_path, folder, "conditions.source=emoji", f"networks.compile={value}"), "cpu")
        for value in ("true", "false")
    ]
    x, level = torch.randn(2, *made[0].latent_shape), made[0].process.at(torch.tensor(500.0, dtype=torch.float64))
    with torch.no_grad():
        compiled, eager = (each.predict(x, level, each.encode(["a cat", "a dog"])).x0 for each in made)
    assert compiled_modules(made[0].network) and not compiled_modules(made[1].network)
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
