"""The documentation's loss and method of one's own: one file and one key each, in runs of the plain loop.

Its reward is tested in tests/rewards, its family in tests/models/test_own_family.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from redif_ray.config import Config, ConfigError, load
from redif_ray.job.preflight import preflight
from redif_ray.loop import PlainLoop
from redif_ray.planning.paths import absolute
from redif_ray.user_code import UserCodeError

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def trained(config: Config) -> str:
    """Return the checksum of the student's weights after all rounds."""
    loop = PlainLoop(config)
    for round in range(loop.plan.rounds):
        loop.round(round)
    return loop.checksum()


def smoke(tmp_path: Path, *overrides: str) -> Config:
    base = [f"run.root={tmp_path}", "tracking.uri=off", "learner.rounds=2", "warm_start.rounds=1"]
    return absolute(load("smoke", [*base, *overrides]))


@pytest.mark.slow
def test_a_loss_from_a_file_trains_as_its_formula_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each round makes one step every ratio is 1 and no clip holds, so the clipped loss is the same function."""
    monkeypatch.chdir(EXAMPLES)
    own = "learner.loss=own_loss.py:unclipped"
    assert trained(smoke(tmp_path, own)) == trained(smoke(tmp_path, "learner.loss=ppo_clip"))
    several = ("learner.inner_epochs=2", "learner.clip=1e-9")
    assert trained(smoke(tmp_path, own, *several)) != trained(smoke(tmp_path, "learner.loss=ppo_clip", *several))


@pytest.mark.slow
def test_a_method_from_a_file_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    config = smoke(tmp_path, "method=own_method.py:BestSibling")
    preflight(config)
    loop = PlainLoop(config)
    assert [phase.name for phase in loop.plan.phases] == ["warm_start", "best_sibling"]
    metrics = [loop.round(round) for round in range(loop.plan.rounds)]
    assert all("reward/mean" in found for found in metrics[1:]) and metrics[-1]["update/grad_norm"] > 0
    assert loop.checksum() != trained(smoke(tmp_path))


def test_the_best_of_each_group_is_imitated() -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from own_method import winners
    finally:
        sys.path.remove(str(EXAMPLES))
    found = winners(torch.tensor([[0.1, 0.3, -0.4], [-1.0, -3.0, -2.0]]))
    assert torch.equal(found, torch.tensor([[0.0, 3.0, 0.0], [3.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("method=nowhere.py:Phase", ConfigError, r"method=.*nowhere\.py:Phase: cannot import"),
        ("method=own_loss.py:unclipped", ConfigError, r"expected a class derived from redif_ray\.methods\.Phase"),
        ("learner.loss=own_loss.py:clipped", UserCodeError, r"learner\.loss=.*has no function 'clipped'"),
        ("learner.advantage=own_loss.py:ranks", UserCodeError, r"learner\.advantage=.*or one of global_std"),
        ("learner.regulariser.kind=own_loss.py:js", UserCodeError, r"learner\.regulariser\.kind=.*or one of kl"),
    ],
)
def test_what_cannot_be_had_is_said_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(EXAMPLES)
    with pytest.raises(error, match=message):
        preflight(smoke(tmp_path, override))


def test_a_misspelt_name_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean ppo_clip\?"):
        smoke(tmp_path, "learner.loss=ppo_clipp")
