"""Workers have other working directories: what a user writes relative to their own must be found all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from redif_ray.config import load
from redif_ray.planning.paths import absolute


def test_relative_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "rewards.py").write_text("")
    config = absolute(
        load(
            None,
            [
                "teacher.model=teacher",
                "teacher.store=kept",
                "run.root=out",
                "reward.terms={mine: {options: {callable: 'rewards.py:score'}},"
                " his: {options: {callable: 'package.module:score'}}, blurred_mse: {options: {sigma: 2.0}}}",
            ],
        )
    )
    assert config.teacher.model == str(tmp_path / "teacher") and config.teacher.store == str(tmp_path / "kept")
    assert config.run.root == str(tmp_path / "out") and config.evaluation.judge == "fashion-mnist"
    options = {name: term.options for name, term in config.reward.terms.items()}
    assert options["mine"] == {"callable": f"{tmp_path}/rewards.py:score"}
    assert options["his"] == {"callable": "package.module:score"} and options["blurred_mse"] == {"sigma": 2.0}
