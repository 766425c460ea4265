"""A student of two processes learns what that of one does, shared out to them or in each (CPU, gloo)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from sharded_ranks import CASES, CONFIG, Run, work
from tiny_models import write_dit, write_unet
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from torch import Tensor

from redif_ray.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow
FAMILIES = {"dit": write_dit, "unet": write_unet, "edm": write_edm, "sdxl": write_sdxl, "sd3": write_sd3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after two rounds and three, by case and by who wrote them; and what was found of each family."""
    root = tmp_path_factory.mktemp("sharded")
    teacher = written(root, "dit", write_dit)
    for case in CASES:
        run = Run(teacher, case)
        metrics = run.round(0) | run.round(1)
        save_checkpoint(root / f"{case}-whole-2", run.state(), {"metrics": metrics, "part": [run.part()]})
        run.round(2)
        save_checkpoint(root / f"{case}-whole-3", run.state(), {})
    guided = {"sd": written(root, "sd", write_sd)}
    torch.multiprocessing.spawn(work, args=(root, list(CASES), teacher, guided), nprocs=2)
    for case in CASES:
        run = Run(teacher, case)
        run.load(root / f"{case}-sharded-2")
        save_checkpoint(root / f"{case}-gathered-2", run.state(), {})
        run.round(2)
        save_checkpoint(root / f"{case}-gathered-3", run.state(), {})
    return root


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of the other families."""
    root = tmp_path_factory.mktemp("families")
    folders = {name: written(root, name, write) for name, write in FAMILIES.items()}
    torch.multiprocessing.spawn(work, args=(root, [], root, folders), nprocs=2)
    return root


def written(root: Path, name: str, write: Callable[[Path], Path]) -> Path:
    (root / name).mkdir()
    return write(root / name)


def read(root: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_checkpoint(root / name)


def distance(root: Path, one: str, other: str) -> tuple[float, float]:
    """The largest of weights and average; and of the moments, all together, relative to them."""
    a, b = read(root, one)[0], read(root, other)[0]
    assert a.keys() == b.keys() and all(a[k].shape == b[k].shape and a[k].dtype == b[k].dtype for k in a)
    weights = max(float((a[k] - b[k]).abs().max()) for k in a if not k.startswith("optimizer"))
    first, second = (torch.cat([t[k].reshape(-1) for k in t if k.endswith("/exp_avg")]) for t in (a, b))
    return weights, float((first - second).norm() / first.norm())


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("who", ["sharded", "each"])
def test_two_ranks_equal_one(root: Path, case: str, who: str) -> None:
    """Weights, moments and average, after rounds that were played with older weights."""
    for rounds in (2, 3):
        weights, moments = distance(root, f"{case}-whole-{rounds}", f"{case}-{who}-{rounds}")
        assert weights < 2e-5 and moments < 1e-3
    assert distance(root, f"{case}-whole-2", f"{case}-whole-3")[0] > 1e-3
    alone, together = (read(root, f"{case}-{name}-2")[1]["metrics"] for name in ("whole", who))
    assert alone["grad_norm"] > 1.5 * CONFIG.max_grad_norm  # clipped
    calls = {"network_calls_forward", "network_calls_backward"}
    for name in alone.keys() - {"seconds"} - calls:
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name
    assert who == "each" or all(together[name] > alone[name] for name in calls)  # idle ones


@pytest.mark.parametrize("case", list(CASES))
def test_a_rank_holds_half(root: Path, case: str) -> None:
    assert read(root, f"{case}-whole-2")[1]["part"] == [1.0]
    assert read(root, f"{case}-sharded-2")[1]["part"] == pytest.approx([0.5, 0.5], abs=0.02)
    assert read(root, f"{case}-each-2")[1]["part"] == [1.0, 1.0]


@pytest.mark.parametrize("case", list(CASES))
def test_checkpoints_are_read_by_as_many_ranks_as_there_are(root: Path, case: str) -> None:
    assert distance(root, f"{case}-sharded-2", f"{case}-gathered-2") == (0, 0)
    assert distance(root, f"{case}-whole-2", f"{case}-reloaded-2") == (0, 0)
    weights, moments = distance(root, f"{case}-gathered-3", f"{case}-reloaded-3")
    assert weights < 2e-5 and moments < 1e-3


def computes_as_it_did(root: Path, name: str) -> bool:
    same, off = load_file(root / "families.safetensors")[name].tolist()
    return bool(same == 1 and off < 1e-5)


def test_a_guided_family_computes_as_it_did(root: Path) -> None:
    assert computes_as_it_did(root, "sd")


@pytest.mark.long
@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_computes_as_it_did(others: Path, name: str) -> None:
    assert computes_as_it_did(others, name)
