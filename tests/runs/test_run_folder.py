from __future__ import annotations

import multiprocessing
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from redif_ray.checkpoint import CheckpointError, save_checkpoint
from redif_ray.config import Config, ConfigError, load
from redif_ray.data.conditions import Conditions
from redif_ray.errors import UserError
from redif_ray.runs.folder import (
    RunError,
    RunFinished,
    RunFolder,
    check_seen,
    latest_checkpoint,
    prune_checkpoints,
)
from redif_ray.workers.actors import RewardActor, RolloutActor


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def make(*overrides: str) -> Config:
        found: Config = load(None, [f"run.root={tmp_path}", "run.name=first", *overrides])
        return found

    return make


@pytest.fixture
def started(config: Any) -> Path:
    folder = RunFolder.open(config(), resume=False)
    folder.close()
    return folder.path


def test_a_run_starts_with_its_configuration(config: Any, started: Path, tmp_path: Path) -> None:
    assert started == tmp_path / "first" and (started / "checkpoints").is_dir()
    assert load(started / "config.yaml") == config()


def test_a_name_is_used_once(config: Any, started: Path) -> None:
    before = (started / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=f"{started} exists; continue it with --resume, or choose another run.name"):
        RunFolder.open(config("run.seed=3"), resume=False)
    (started / "summary.json").touch()
    with pytest.raises(RunError, match=f"{started} holds a finished run; read its report.html, or choose another"):
        RunFolder.open(config("run.seed=3"), resume=False)
    assert (started / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_run_is_left_alone(what: str, config: Any, tmp_path: Path) -> None:
    path = tmp_path / "first"
    if what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        RunFolder.open(config(), resume=False)
    assert path.is_file() or [p.name for p in path.iterdir()] == ["notes.txt"]


def test_nothing_cannot_be_resumed(config: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"first holds no run to resume; leave --resume out to start it"):
        RunFolder.open(config(), resume=True)
    assert not (tmp_path / "first").exists()


def test_a_start_that_was_cut_short_can_be_started(config: Any, started: Path) -> None:
    """Killed before the configuration was written: --resume says start it, and starting it works."""
    (started / "config.yaml").rename(started / f".config.yaml.{'0' * 32}.partial")
    with pytest.raises(RunError, match="leave --resume out"):
        RunFolder.open(config(), resume=True)
    RunFolder.open(config(), resume=False).close()
    RunFolder.open(config(), resume=True).close()


def test_a_finished_run_says_so(config: Any, started: Path) -> None:
    RunFolder.open(config(), resume=True).close()
    (started / "summary.json").write_text("{}")
    with pytest.raises(RunFinished, match=f"{started} is finished; its results are in {started}/report.md"):
        RunFolder.open(config(), resume=True)
    assert not issubclass(RunFinished, UserError) and RunFinished.exit_code == 0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner.lr=2e-5", "learner.lr: 1e-05 then, 2e-05 now"),
        ("run.seed=1", "run.seed: 0 then, 1 now"),
        ("learner.workers=2", "learner.workers: 1 then, 2 now"),
        ("rollout.threads=2", "rollout.threads: 1 then, 2 now"),
        ("student.steps=2", "student.steps: 4 then, 2 now"),
        ("conditions.classes=[1, 2]", r"conditions.classes: None then, \(1, 2\) now"),
        ("reward.terms.mse.weight=2", "reward.terms.mse.weight: 1.0 then, 2.0 now"),
        ("reward.terms={ssim: {weight: 1}}", "reward.terms.mse: {.*} then, None now\n  .*ssim: None then, {.*}"),
    ],
)
def test_a_changed_key_is_refused(override: str, line: str, config: Any, started: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{started} was started with another configuration.*\n  {line}") as refusal:
        RunFolder.open(config(override), resume=True)
    RunFolder.open(config(), resume=True).close()  # the refusal, whose frames are still alive, keeps no lock
    del refusal


def test_a_folder_of_an_earlier_version_is_refused(config: Any, started: Path) -> None:
    path = started / "config.yaml"
    path.write_text(path.read_text().replace("  fsdp: false", "  shard: false"))
    with pytest.raises(RunError) as caught:
        RunFolder.open(config(), resume=True)
    assert str(caught.value) == (
        f"{started} was made by an earlier version of redif-ray: its config.yaml has learner.shard: unknown key; it is "
        "now learner.fsdp; use that version, or start the run again under another run.name"
    )


def test_every_changed_key_is_named(config: Any, started: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        RunFolder.open(config("learner.lr=1", "run.seed=7", "rollout.max_workers=9"), resume=True)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["learner.lr", "run.seed"]


def test_where_and_with_how_many_hands_is_free(config: Any, started: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    started.rename(elsewhere / "first")
    changed = config(
        f"run.root={elsewhere}",
        "ray.address=auto",
        "ray.num_cpus=3",
        "ray.wait=true",
        "rollout.max_workers=4",
        "reward.max_workers=2",
        "rollout.cpus=0.5",
        "reward.cpus=0.5",
        "learner.cpus=2",
        "rollout.resources={spot: 1}",
        "reward.resources={reward: 0.5}",
        "learner.resources={learner: 1}",
        "checkpoint.every=1",
        "checkpoint.keep=9",
        "rollout.min_workers=2",
        "reward.min_workers=1",
        "rollout.labels={zone: a}",
        "reward.labels={zone: a}",
        "learner.labels={b: c}",
        "tracking.uri=off",
        "pipeline.colocate=true",
    )
    RunFolder.open(changed, resume=True).close()


def test_one_process_at_a_time(config: Any, started: Path) -> None:
    folder = RunFolder.open(config(), resume=True)
    for attempt in (lambda: RunFolder.open(config(), resume=True), lambda: RunFolder.reopen(started).__enter__()):
        with pytest.raises(RunError, match=f"{started} is in use by another process"):
            attempt()
    folder.close()
    with RunFolder.reopen(started) as again:
        assert again.path == started
        with pytest.raises(RunError, match="in use"):
            RunFolder.open(config(), resume=True)
    RunFolder.open(config(), resume=True).close()


def hold(config: Config, ready: Any) -> None:
    folder = RunFolder.open(config, resume=True)
    ready.send(str(folder.path))
    ready.recv()


def test_a_killed_process_leaves_no_lock(config: Any, started: Path) -> None:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(config(), theirs))
    process.start()
    assert ours.recv() == str(started)
    with pytest.raises(RunError, match="in use by another process"):
        RunFolder.open(config(), resume=True)
    process.kill()
    process.join()
    RunFolder.open(config(), resume=True).close()


def test_a_root_that_cannot_be_written(config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot write .*/file/first: .*set run.root to a folder"):
        RunFolder.open(config(f"run.root={tmp_path / 'file'}"), resume=False)


def test_a_file_is_written_whole_or_not_at_all(config: Any, started: Path) -> None:
    folder = RunFolder.open(config(), resume=True)
    folder.write("report.md", "old\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(RunError, match=r"cannot write .*/report.md: .*free space"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file grows beyond: as on a full disk
        try:
            folder.write("report.md", "new\n" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (started / "report.md").read_text() == "old\n" and not list(started.glob("*.partial"))
    folder.write("report.md", "new\n" * 1000)
    assert (started / "report.md").read_text() == "new\n" * 1000
    folder.close()


def test_state_is_kept(config: Any, started: Path) -> None:
    folder = RunFolder.open(config(), resume=True)
    assert folder.state == {}
    folder.update_state(mlflow_run_id="abc")
    folder.update_state(calibration={"mse": [0.1 + 0.2, None]})
    folder.close()
    again = RunFolder.open(config(), resume=True)
    assert again.state == {"mlflow_run_id": "abc", "calibration": {"mse": [0.1 + 0.2, None]}}
    (started / "run.json").write_text("{")
    with pytest.raises(RunError, match=f"{started}/run.json is corrupt"):
        _ = again.state
    again.close()


def test_a_node_that_sees_the_folder(config: Any, started: Path) -> None:
    folder = RunFolder.open(config(), resume=True)
    with folder.token() as first:
        check_seen(first)
    (started / f".seen-{'0' * 32}").touch()  # of a driver that was killed
    with folder.token() as second:
        check_seen(second)
        assert second != first and list(started.glob(".seen-*")) == [second]
    assert not list(started.glob(".seen-*"))
    folder.close()


@pytest.mark.parametrize("worker", [RolloutActor, RewardActor])
def test_a_node_that_does_not_see_the_folder(worker: type, config: Any, tmp_path: Path) -> None:
    """Nothing is loaded or written there, and every call says what to do."""
    token = tmp_path / "elsewhere" / "first" / ".seen-0"
    here = worker("worker-0", config("teacher.model=nowhere"), token)
    message = f"node {socket.gethostname()} does not see the run folder {token.parent}: run.root={tmp_path}/elsewhere"
    for call in (here.ready, lambda: getattr(here, "rollout", getattr(here, "score", None))()):
        with pytest.raises(RunError, match=f"{message} is not shared with it; set run.root to a folder that every"):
            call()
    assert not (tmp_path / "elsewhere").exists()


def test_a_resumed_run_draws_the_same_conditions(config: Any, started: Path) -> None:
    drawn = Conditions(("a cat", "a dog", "ein Gruß"), ("a bird",), seed=3)
    folder = RunFolder.open(config(), resume=True)
    assert folder.conditions() is None
    folder.keep_conditions(drawn)
    folder.keep_conditions(drawn)
    assert folder.conditions() == drawn
    with pytest.raises(RunError, match=r"kept in conditions.json: 2 for training and 1 held out now, 3 and 1 then"):
        folder.keep_conditions(Conditions(("a cat", "a dog"), ("a bird",), seed=3))
    assert folder.conditions() == drawn
    (started / "conditions.json").write_text('{"training": []}')
    with pytest.raises(RunError, match=f"{started}/conditions.json is corrupt"):
        folder.conditions()
    folder.close()


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "absent") is None
    for name in ("round-000009", "round-000010", "best", "warm_start"):
        save_checkpoint(tmp_path / name, {}, {})
    (tmp_path / ".round-000011.partial").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "round-000010"
    (tmp_path / "round-000010" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"round-000010 has no manifest.json; move it away"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_the_oldest_checkpoints_go(keep: int, left: list[int], tmp_path: Path) -> None:
    for name in ("best", *(f"round-{r:06d}" for r in (30, 10, 40, 20))):
        save_checkpoint(tmp_path / name, {}, {})
    prune_checkpoints(tmp_path, keep)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", *(f"round-{r:06d}" for r in left)]
