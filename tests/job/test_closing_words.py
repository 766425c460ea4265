"""The commands that a run ends with can be pasted, whatever its folder is called."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redif_ray.job import finish


@pytest.mark.parametrize(("captions", "asked"), [(False, ["--count", "16"]), (True, ["--caption", "..."])])
@pytest.mark.parametrize("name", ["my run", "it's", 'say "x"', "$(reboot)", "a;b", "plain"])
def test_commands_can_be_pasted(name: str, captions: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "poor_teacher", lambda _: None)
    monkeypatch.setattr(finish, "claims", lambda _: [])
    monkeypatch.setattr(finish.Summary, "model_validate", lambda summary: summary)
    folder, uri = Path("/runs") / name, f"sqlite:////runs/{name}/mlflow.db"
    page = SimpleNamespace(path=folder, state={"mlflow_run_id": "1", "mlflow_page": "#/1"})
    config = SimpleNamespace(tracking_uri=uri, run=SimpleNamespace(name=name))
    run: Any = SimpleNamespace(folder=page, config=config, teacher=SimpleNamespace(takes_captions=captions))
    lines = finish._closing_words(run, {"notes": {"student_gain": {}}}).splitlines()
    said = {
        line.split()[0]: shlex.split(line.split(maxsplit=1)[1])
        for line in lines
        if " redif " in line or " mlflow " in line
    }
    assert said["sample"] == ["redif", "sample", str(folder), *asked, "--out", f"{name}.png"]
    assert said["MLflow"][-1] == uri
