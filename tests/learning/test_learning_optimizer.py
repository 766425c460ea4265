"""AdamW with moments in 8 bits, by the optional package bitsandbytes: its steps, its bytes and its checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_models import normal
from torch.nn import Parameter

from redif_ray.checkpoint import load_checkpoint, optimizer_tensors, save_checkpoint
from redif_ray.config import Config, ConfigError, Learner, load
from redif_ray.learning.step import make_optimizer
from redif_ray.loop import PlainLoop
from redif_ray.planning.memory import footprints
from redif_ray.planning.weight_bytes import moment_bytes
from redif_ray.workers.offload import move

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="bitsandbytes, which is optional, is not installed")
EIGHT, FULL = Learner(optimizer="adamw_8bit", weight_decay=0.01), Learner(weight_decay=0.01)


def stepped(learner: Learner, steps: int = 20) -> tuple[list[Parameter], torch.optim.Optimizer]:
    """Return a large and a small weight after steps along gradients that change slowly, and their optimiser."""
    weights = [Parameter(normal(64, 128)), Parameter(normal(10, 10))]
    optimizer = make_optimizer(weights, learner)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for i in range(steps):
        for weight in weights:
            weight.grad = normal(*weight.shape, seed=3) + 0.5 * normal(*weight.shape, seed=10 + i)
        optimizer.step()
    return weights, optimizer


@needs_package
def test_its_steps_are_near_those_of_adamw() -> None:
    own, other = stepped(EIGHT)[0], stepped(FULL)[0]
    moved = (other[0] - normal(64, 128)).detach().norm()
    assert 0 < float((own[0] - other[0]).detach().norm() / moved) < 0.02  # 8 bits of each moment
    assert torch.allclose(own[1], other[1], atol=1e-6)  # a small weight has moments of 32 bits


@needs_package
def test_its_moments_are_counted() -> None:
    weights, optimizer = stepped(EIGHT, 1)
    tensors = optimizer_tensors(optimizer, ["large", "small"])
    tables = {name for name in tensors if "qmap" in name}  # the same for all weights
    held = sum(value.nbytes for name, value in tensors.items() if name not in tables and value.ndim)
    assert held == moment_bytes(EIGHT, weights) < moment_bytes(FULL, weights) == 8 * (64 * 128 + 100)


@needs_package
def test_its_moments_move_between_devices() -> None:
    weights, optimizer = stepped(EIGHT, 1)
    move([optimizer], "cpu")
    assert optimizer.state[weights[0]]["step"] == 1


def recipe(root: Path, *overrides: str) -> Config:
    fixed = (f"run.root={root}", "tracking.uri=off", "evaluation.judge=random-features", "rollout.groups=2")
    return load("smoke", [*fixed, "learner.optimizer=adamw_8bit", "warm_start.rounds=0", *overrides])


@needs_package
@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    loop = PlainLoop(config)
    loop.round(0)
    save_checkpoint(tmp_path / "checkpoint", loop.trainee.state(), {})
    state, _ = load_checkpoint(tmp_path / "checkpoint")
    assert any(value.dtype == torch.uint8 for value in state.values())
    loop.round(1)
    again = PlainLoop(config)
    again.phase = again.plan.phase(0)
    again.trainee.start(again.phase)
    again.trainee.load(state)
    assert all(
        type(each["step"]) is int for each in again.trainee.learning.optimizer.state.values()
    )  # kernels ask that
    again.round(1)
    assert again.checksum() == loop.checksum()


@pytest.mark.slow
def test_doctor_counts_its_moments(tmp_path: Path) -> None:
    eight, full = (
        footprints(recipe(tmp_path, f"learner.optimizer={kind}"), activations=False) for kind in ("adamw_8bit", "adamw")
    )
    saved = (full.roles["learner"].training - eight.roles["learner"].training) * 1e6
    assert 0.5 * 6 * full.trained < saved < 6 * full.trained


def test_it_cannot_be_shared_out_among_ranks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.optimizer=adamw_8bit cannot share its moments"):
        recipe(tmp_path, "learner.fsdp=true", "learner.workers=2")
