"""A run that is stopped while it starts says how many rounds it has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redif_ray.checkpoint import MANIFEST
from redif_ray.learner import learner as module
from redif_ray.learner.learner import Learner


@pytest.mark.parametrize(("checkpoints", "rounds"), [((), 0), (("round-000004", "round-000008", "best"), 8)])
def test_the_rounds_of_the_newest_checkpoint_are_told(
    checkpoints: tuple[str, ...], rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in checkpoints:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / MANIFEST).touch()
    monkeypatch.setattr(module.ray, "get", lambda answer: answer)
    learner: Any = Learner.__new__(Learner)
    learner.folder, learner.token = tmp_path, tmp_path  # a token that is there
    learner.coordinator = SimpleNamespace(begun_with=SimpleNamespace(remote=lambda: None))  # told to stop
    learner.accounts = SimpleNamespace(ledger=SimpleNamespace(state=dict))
    outcome = learner.run()
    assert (outcome.round, outcome.stopped) == (rounds, True)
