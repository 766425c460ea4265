"""The inner loops keep a device busy: the CPU waits for it as often for many network calls as for few."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import second_device
from short_runs import SHORT, written
from smoke_runs import smoke

from redif_ray.loop import PlainLoop
from redif_ray.planning import factory

pytestmark = pytest.mark.slow

GPUS = tuple(f"{role}.gpus=1" for role in ("rollout", "reward", "learner"))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "device", lambda gpus: second_device.NAME if gpus else "cpu")


def waits(folder: Path, *overrides: str) -> Counter[str]:
    """Count what the CPU waits for in the second of two rounds, of a run without a warm start."""
    config = smoke(
        folder,
        "run",
        *SHORT,
        *written("dit", folder),
        "warm_start.rounds=0",
        "learner.rounds=2",
        "teacher.batch=1",
        *overrides,
        *GPUS,
    )
    loop = PlainLoop(config)
    loop.round(0)
    second_device.WAITS.clear()
    loop.round(1)
    return Counter(second_device.WAITS)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(("method=redif",), marks=pytest.mark.long),
        ("method=output", "output.samples=8"),
        pytest.param(
            ("method=sfd", "warm_start={rounds: 2, groups: 8, minibatch: 16}", "learner.rounds=0"),
            marks=pytest.mark.long,
        ),
        pytest.param(("method=straight", "output.samples=8"), marks=pytest.mark.long),
    ],
    ids=lambda method: method[0].removeprefix("method="),
)
def test_an_update_waits_once_for_all_of_its_parts(method: tuple[str, ...], tmp_path: Path) -> None:
    few, many = (waits(tmp_path / str(size), f"learner.microbatch={size}", *method) for size in (64, 1))
    assert few == many and few.total() > 0


def test_a_teacher_s_image_waits_once_for_all_of_its_steps(tmp_path: Path) -> None:
    few, many = (waits(tmp_path / str(steps), f"teacher.steps={steps}", "teacher.solver=heun") for steps in (2, 9))
    assert few == many


def test_a_trajectory_waits_once_for_all_of_its_steps(tmp_path: Path) -> None:
    few, many = (waits(tmp_path / str(steps), f"student.steps={steps}") for steps in (2, 6))
    assert few == many
