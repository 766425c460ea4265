"""A run says where its rounds have nothing to learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from redif_ray.config import load
from redif_ray.learning.unlearned import MANY, Streak, unlearned
from redif_ray.loop import PlainLoop
from redif_ray.planning.paths import absolute

METHODS = {"redif": (), "output": ("output.samples=8",), "draft": ()}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_reward_leaves_nothing_to_learn(method: str, tmp_path: Path) -> None:
    """The per-step method learns its anchor all the same, which is no reward."""
    (tmp_path / "mine.py").write_text(
        "def score(student, teacher, conditions):\n    return student.sum((1, 2, 3)) * 0\n"
    )
    options = f"callable: '{tmp_path}/mine.py:score', differentiable: {'true' if method == 'draft' else 'false'}"
    given = [f"run.root={tmp_path}", f"method={method}", "warm_start.rounds=0", "learner.rounds=1", *METHODS[method]]
    found = {}
    for name, terms in (("constant", f"{{mine: {{options: {{{options}}}}}}}"), ("mse", "{mse: {}}")):
        found[name] = PlainLoop(absolute(load("smoke", [*given, f"reward.terms={terms}"]))).round(0)
    assert unlearned(found["constant"]) and not unlearned(found["mse"])


def test_a_streak_is_told_once() -> None:
    streak, dead = Streak(), {"advantage/dead_group_fraction": 1.0, "update/grad_norm": 0.2}
    rows = [dead] * (MANY - 1) + [{"update/grad_norm": 0.1}] + [dead] * 2 * MANY
    told = [i for i, row in enumerate(rows) if streak.warning(row) is not None]
    assert told == [2 * MANY - 1]
