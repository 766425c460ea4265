"""An error that a user can mend ends training at once: it is returned to Ray Train, which would retry a raised one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from redif_ray.job.training import Fit
from redif_ray.learner import ray_train
from redif_ray.learner.ray_train import train_loop
from redif_ray.rewards.base import RewardError


class Learner:
    """The job of a run whose reward fails in round 3. `job` notes who left."""

    def __init__(self, job: list[int], rank: int, world: int) -> None:
        self.job, self.round = job, 3
        self.ranks = SimpleNamespace(rank=rank, world=world, first=rank == 0)
        self.accounts = SimpleNamespace(ledger=SimpleNamespace(state=dict))

    def run(self) -> None:
        raise RewardError("reward term 'mine' is nan at row 0")

    def leave(self) -> None:
        self.job.append(self.ranks.rank)


def as_one_of(world: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: world)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray_train, "imported", lambda _: Learner)
    return []


def test_the_driver_raises_what_the_learner_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    job: Any = as_one_of(1, monkeypatch)
    outcome = train_loop(job)
    assert outcome is not None and outcome.round == 3 and not outcome.stopped and job == [0]
    with pytest.raises(RewardError, match="'mine' is nan"):
        Fit(lambda: SimpleNamespace(fit=lambda: SimpleNamespace(return_value=outcome)), lambda: None).outcome()


def test_a_rank_does_not_leave_the_others_in_a_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    job: Any = as_one_of(2, monkeypatch)
    with pytest.raises(RewardError):
        train_loop(job)
    assert job == [0]
