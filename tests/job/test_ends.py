"""What a run says where the disk, Ray or Ray Train fails, and what it counts as lost; none of this runs on Ray."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from redif_ray.config import load
from redif_ray.errors import LostError, UserError
from redif_ray.evaluation import plots
from redif_ray.interrupt import StopRequest
from redif_ray.job import distill, session
from redif_ray.job.metrics_writer import MetricsWriter
from redif_ray.job.training import FAILURES, Fit
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.jsonl import read_rows
from redif_ray.tracking import TrackingError, answered
from redif_ray.workers import actors


def full(path: str | None = "/runs/x/student") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def wrapped(error: Exception) -> RayTaskError:
    return RayTaskError("export", "a traceback", error)


NO_SPACE = "[Errno 28] No space left on device: '/runs/x/student'"
FULL = f"cannot go on: {NO_SPACE}; free space, and continue with --resume"
LOST = "lost what is needed to go on: score was lost 5 times; continue with --resume"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "kind", "code", "words"),
    [
        (full(), UserError, 2, FULL),
        (wrapped(full()), UserError, 2, FULL),
        (RayError("score was lost 5 times"), LostError, 3, LOST),
        (wrapped(RayError("score was lost 5 times")), LostError, 3, LOST),
        (UserError("as it is"), UserError, 2, "as it is"),
    ],
)
def test_a_run_ends_with_what_to_do(
    raised: Exception, kind: type[UserError], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(distill, "_distill", fail)
    config = load("smoke", [f"run.root={tmp_path}", "run.name=x", "tracking.uri=off"])
    with pytest.raises(kind) as told:
        distill.run_part(config, StopRequest(), resume=False, console=SimpleNamespace(print=print))  # type: ignore[arg-type]
    assert str(told.value) == words and told.value.exit_code == code
    with RunFolder.reopen(tmp_path / "x") as folder:
        assert folder.state["failure"] == f"{kind.__name__}: {words}"


def test_the_driver_gets_the_disk_s_own_error_from_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise wrapped(full())

    monkeypatch.setattr(ray, "wait", lambda waiting, **_: (waiting, []))
    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(OSError, match="No space left"):
        session.get("reference", StopRequest())


@pytest.mark.parametrize("error", [full("/mlartifacts/x.png"), RuntimeError("database or disk is full\n[SQL: ...]")])
def test_an_mlflow_store_that_is_full_is_named(error: Exception) -> None:
    with (
        pytest.raises(TrackingError, match=r"the MLflow store sqlite:///x.db did not take.*full|No space") as told,
        answered("sqlite:///x.db"),
    ):
        raise error
    assert "continue with --resume" in str(told.value) and "SQL" not in str(told.value)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots.side_by_side(tmp_path / "samples.png", [("arm", np.zeros((1, 1, 4, 4), np.uint8))])
    before = (tmp_path / "samples.png").read_bytes()

    def half(self: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(before[:100])
        raise full(None)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match=r"No space left on device: '.*/samples.png'"):
        plots.side_by_side(tmp_path / "samples.png", [("arm", np.zeros((1, 1, 4, 4), np.uint8))])
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]
    assert (tmp_path / "samples.png").read_bytes() == before


def trainers(*ends: Any) -> Callable[[], Any]:
    """What makes a trainer each time it is called, whose `fit` ends so."""
    left = list(ends)

    def fit() -> Any:
        end = left.pop(0)
        if isinstance(end, Exception):
            raise end
        return SimpleNamespace(return_value=end)

    return lambda: SimpleNamespace(fit=fit)


def outcome() -> Any:
    return SimpleNamespace(error=None, round=3)


def test_ray_train_is_started_again_where_it_is_lost() -> None:
    lost: list[None] = []
    fit = Fit(trainers(ActorDiedError(), ActorDiedError(), outcome()), lambda: lost.append(None))
    assert fit.outcome().round == 3 and len(lost) == 2


def test_ray_train_that_is_lost_too_often_ends_the_run() -> None:
    lost: list[None] = []
    fit = Fit(trainers(*[ActorDiedError()] * (FAILURES + 1)), lambda: lost.append(None))
    with pytest.raises(ActorDiedError):
        fit.outcome()
    assert len(lost) == FAILURES


def test_a_driver_that_leaves_starts_no_other_trainer() -> None:
    lost: list[None] = []
    fit: Fit

    def fail() -> Any:
        while "fit" not in made:
            pass
        made["fit"].leave()
        raise ActorDiedError

    made: dict[str, Fit] = {}
    made["fit"] = fit = Fit(lambda: SimpleNamespace(fit=fail), lambda: lost.append(None))
    with pytest.raises(ActorDiedError):
        fit.outcome()
    assert not lost


def test_each_loss_of_a_worker_is_counted_once(tmp_path: Path) -> None:
    writer = MetricsWriter(str(tmp_path), None, "", "", None)
    writer.lost("reward")  # in a call, as the coordinator tells
    writer.came_back("reward")
    writer.came_back("reward")  # as it loads, or between calls: the process alone tells
    writer.came_back("rollout")
    writer.lost("rollout")
    assert writer.all_lost() == {"reward": 2, "rollout": 2}
    assert len(read_rows(tmp_path / "lost.jsonl")) == 4


class Told:
    """Stands in for the handle of the metrics writer."""

    roles: ClassVar[list[str]] = []

    @property
    def came_back(self) -> Any:
        return SimpleNamespace(remote=self.roles.append)


@pytest.mark.parametrize("again", [False, True])
def test_a_worker_that_takes_the_place_of_a_lost_one_says_so(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Told.roles.clear()
    monkeypatch.setattr(actors, "restarted", lambda: again)
    monkeypatch.setattr(actors, "_made", lambda *_: None)
    actors.RewardActor("reward-0", load("smoke"), Path("seen"), None, cloudpickle.dumps(Told()))
    assert Told.roles == (["reward"] if again else [])
