"""A user's own loss, advantage or divergence: its calls are guarded as those of a reward, and workers outlive it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from redif_ray.cli import main
from redif_ray.config import load
from redif_ray.learner import ray_train
from redif_ray.registry import found_or_imported
from redif_ray.user_code.errors import UserCodeError
from redif_ray.workers import actors
from redif_ray.workers.actors import RewardActor


@dataclass(frozen=True)
class Given:
    mean: Tensor
    clip: float = 0.2


def own(folder: Path, body: str, head: str = "") -> Any:
    path = folder / "mine.py"
    path.write_text(
        f"import os, sys, torch\n{head}\ndef loss(given, advantage):\n    {body}\n    return advantage * 2\n"
    )
    return found_or_imported(f"{path}:loss", {"own": None}, "learner.loss")


def test_its_value_is_what_it_returns(tmp_path: Path) -> None:
    advantage = torch.ones(2, requires_grad=True)
    found = own(tmp_path, "given.mean * 2; advantage + 1")(Given(torch.zeros(2)), advantage)
    found.sum().backward()
    assert found.tolist() == [2, 2] and advantage.grad is not None and advantage.grad.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(0)", "it failed: SystemExit: 0\n.*mine.py:4, in loss: sys.exit"),
        ("1 / 0", "it failed: ZeroDivisionError: division by zero\n.*mine.py:4, in loss: 1 / 0"),
        ("torch.set_default_dtype(torch.float64)", "it changed torch's default dtype"),
        ("os.chdir('/')", "it changed the working directory"),
        ("given.mean.mul_(2)", "it altered a tensor that it was given; work on a copy"),
        ("advantage += 1", "it altered a tensor that it was given"),
    ],
)
def test_a_call_that_does_more_is_named(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=rf"^learner\.loss=.*mine.py:loss: {message}"):
        own(tmp_path, body)(Given(torch.zeros(2)), torch.ones(2))
    assert torch.get_default_dtype() == torch.float32


def test_an_import_that_does_more_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserCodeError, match=r"^learner\.loss=.*it changed torch's default dtype .*; expected code that"
    ):
        own(tmp_path, "pass", "torch.set_default_dtype(torch.float64)")
    assert torch.get_default_dtype() == torch.float32


class Exits:
    """A worker whose model, say, calls sys.exit."""

    offload = SimpleNamespace(wake=lambda: None, rest=lambda: sys.exit(0))

    def __getattr__(self, _: str) -> Any:
        return lambda *_: sys.exit(0)


@pytest.mark.parametrize("call", ["ready", "score", "targets", "see", "reference", "encode"])
def test_a_worker_outlives_an_exit_and_says_its_line(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".seen").touch()
    monkeypatch.setattr(actors, "imported", lambda _: lambda *_: Exits())
    worker = RewardActor("reward-0", load("smoke"), tmp_path / ".seen")
    with pytest.raises(
        UserCodeError, match=r"^code of your own ended the process: SystemExit: 0\n.*test_own_functions"
    ):
        getattr(worker, call)()


def test_an_exit_while_a_worker_is_built_is_what_every_call_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".seen").touch()
    monkeypatch.setattr(actors, "imported", lambda _: lambda *_: sys.exit(0))
    with pytest.raises(UserCodeError, match="code of your own ended the process"):
        RewardActor("reward-0", load("smoke"), tmp_path / ".seen").score()


def test_an_exit_is_no_end_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train would take it for one."""

    class Learner:
        round = 3
        ranks = SimpleNamespace(world=1, first=True)
        accounts = SimpleNamespace(ledger=SimpleNamespace(state=dict))

        def __init__(self, job: dict[str, Any], *_: int) -> None:
            if job["when"] == "start":
                sys.exit(0)

        def run(self) -> None:
            sys.exit(0)

        def leave(self) -> None:
            pass

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray_train, "imported", lambda _: Learner)
    monkeypatch.setattr(ray_train, "ray", SimpleNamespace(train=SimpleNamespace(get_context=lambda: context)))
    outcome = ray_train.train_loop({"when": "run"})
    assert outcome is not None and isinstance(outcome.error, UserCodeError) and outcome.round == 3
    with pytest.raises(UserCodeError, match="code of your own ended the process"):
        ray_train.train_loop({"when": "start"})


@pytest.mark.parametrize("exit", ["os._exit(0)", "sys.exit(0)"])
def test_a_family_that_exits_ends_no_command_in_silence(
    exit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"import os, sys\n\n\ndef load(folder, dtype):\n    {exit}\n")
    words = ["redif", "sample", "fashion-mnist", "--family", f"{path}:load", "--out", str(tmp_path / "x.png")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and f"{path}:5, in load: {exit}" in error and not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_an_os_exit_of_this_package_ends_the_process() -> None:
    code = (
        "from redif_ray.user_code.errors import hard_exits_named\n"
        "with hard_exits_named():\n"
        "    from redif_ray.cluster import private\n"
        "    private._end(1, ())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3 and "process 1 of Ray, which this command had started, is dead" in done.stderr
