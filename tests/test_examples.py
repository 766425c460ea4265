"""The documentation's loss and method of one's own: one file and one key each, in runs of the plain loop.

Its reward is tested in tests/rewards, its family in tests/models/test_own_family.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from redif_ray.config import Config, ConfigError, load
from redif_ray.job.preflight import preflight
from redif_ray.learning.advantages import ADVANTAGES
from redif_ray.learning.losses import LOSSES
from redif_ray.learning.regularisers import DIVERGENCES, divergence
from redif_ray.loop import PlainLoop
from redif_ray.methods import METHODS
from redif_ray.planning.paths import absolute
from redif_ray.user_code.errors import UserCodeError

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
    """Every ratio is 1 where each round makes one step and no clip holds, so the clipped loss is the same function."""
    monkeypatch.chdir(EXAMPLES)
    own = "learner.loss=own_loss.py:unclipped"
    assert trained(smoke(tmp_path, own)) == trained(smoke(tmp_path, "learner.loss=ppo_clip"))
    several = ("learner.inner_epochs=2", "learner.clip=1e-9")
    assert trained(smoke(tmp_path, own, *several)) != trained(smoke(tmp_path, "learner.loss=ppo_clip", *several))


def test_a_file_of_the_users_runs_once_in_a_process(tmp_path: Path) -> None:
    """The divergence is looked up in each microbatch, the loss and the advantage in each round."""
    log = tmp_path / "log"
    text = f"open({str(log)!r}, 'a').write('run ')\ndef squared(d2, order):\n    return d2 * d2\n"
    (tmp_path / "own.py").write_text(text)
    kind, mean = f"{tmp_path / 'own.py'}:squared", torch.ones(1, 2)
    values = [divergence(kind, mean, torch.zeros(1, 2), torch.ones(1)) for _ in range(3)]
    assert all(float(value) == 1.0 for value in values) and log.read_text() == "run "


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("method", METHODS),
        ("learner.loss", LOSSES),
        ("learner.advantage", ADVANTAGES),
        ("learner.regulariser.kind", ["none", "mse", *DIVERGENCES]),
    ],
)
def test_the_configuration_lists_what_the_registry_has(key: str, names: Iterable[str]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"expected {', '.join(names)}, or your own")):
        load(None, [f"{key}=nothing"])


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


@pytest.mark.long
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
