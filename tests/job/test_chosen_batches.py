"""A run that gives no batches chooses them once, and keeps them wherever it goes on."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from smoke_runs import last_weights, plain_weights, smoke, train

from redif_ray.config import Config
from redif_ray.job.batches import with_batches
from redif_ray.runs.folder import RunFolder, stored_config

OPEN = ("learner.microbatch=null", "evaluation.batch=null")


def told(config: Config, *, resume: bool) -> tuple[tuple[int | None, int | None], str]:
    """The numbers that a command has, and what it prints."""
    output = StringIO()
    found = with_batches(config, Console(file=output, width=500), resume=resume)
    return (found.learner.microbatch, found.evaluation.batch), output.getvalue()


@pytest.mark.slow
def test_they_are_chosen_once_and_said(tmp_path: Path) -> None:
    numbers, said = told(smoke(tmp_path, "new", *OPEN), resume=False)
    assert numbers == (32, 32) and said.count("\n") == 1
    assert said.startswith("learner.microbatch=32 and evaluation.batch=32: the largest power of two up to 32 that fits")
    assert told(smoke(tmp_path, "new"), resume=False) == ((64, 10), "")


def test_a_run_that_goes_on_keeps_its_own(tmp_path: Path) -> None:
    """A resumed run takes the numbers of its folder, which another machine may have chosen, and refuses others."""
    RunFolder.open(smoke(tmp_path, "old", "learner.microbatch=7", "evaluation.batch=9"), resume=False).close()
    assert told(smoke(tmp_path, "old", *OPEN), resume=True) == ((7, 9), "")
    assert told(smoke(tmp_path, "old", "evaluation.batch=null"), resume=True) == ((64, 9), "")


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_run_has_them_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted and resumed, it ends as one that is given the same numbers."""
    config = smoke(tmp_path, "chosen", *OPEN)
    folder = train(config, until=2)
    stored = stored_config(folder)
    assert (stored.learner.microbatch, stored.evaluation.batch) == (32, 32)
    assert "learner.microbatch=32 and evaluation.batch=32" in capsys.readouterr().out
    train(config, resume=True)
    assert "evaluation.batch=" not in capsys.readouterr().out
    assert last_weights(folder) == plain_weights(smoke(tmp_path, "given", "learner.microbatch=32"))
