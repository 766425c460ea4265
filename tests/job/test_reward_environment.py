"""Reward workers with an environment of their own: what only they can build and score, the others do not ask for."""

from __future__ import annotations

import importlib.util
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from learned_run import SECRET
from ray.exceptions import RuntimeEnvSetupError
from smoke_runs import smoke, summary

from redif_ray.config import ConfigError, load
from redif_ray.faults import RESTARTABLE
from redif_ray.interrupt import StopRequest
from redif_ray.job.distill import distill
from redif_ray.job.preflight import preflight
from redif_ray.job.session import all_ready
from redif_ray.rewards.base import RewardError
from redif_ray.workers import runtime_env
from redif_ray.workers.actors import RewardActor


def only_there(name: str) -> str:
    return f"reward.terms={{mse: {{}}, mine: {{weight: 0.5, options: {{callable: '{name}:score'}}}}}}"


def test_what_ray_is_told_and_what_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, ["reward.runtime_env={pip: [x], env_vars: {SCORER_TOKEN: null, HF_HOME: /shared/hf}}"])
    assert runtime_env.for_ray(config.reward) == {"pip": ["x"], "env_vars": {"HF_HOME": "/shared/hf"}}
    monkeypatch.setenv("SCORER_TOKEN", SECRET)
    assert runtime_env.handed_over(config.reward) == {"SCORER_TOKEN": SECRET}
    for nothing in (load(None, ["reward.runtime_env={}"]), load(None)):
        assert runtime_env.for_ray(nothing.reward) == runtime_env.handed_over(nothing.reward) == {}


def test_a_variable_that_the_driver_lacks_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    config = smoke(tmp_path / "runs", "run", "reward.runtime_env.env_vars.SCORER_TOKEN=null")
    with pytest.raises(ConfigError, match=r"env_vars\.SCORER_TOKEN=null .* is not set; set it before"):
        distill(config)
    assert not (tmp_path / "runs").exists()


def test_what_a_node_says_of_a_package_is_told() -> None:
    error = RuntimeEnvSetupError(60 * "Ray says much, " + "\nERROR: No matching distribution found for nosuch")
    found = runtime_env.failed(error)
    assert found.endswith("No matching distribution found for nosuch") and len(found) < 600


@pytest.mark.long
def test_the_driver_builds_no_term_where_the_workers_have_more(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"terms.mine: callable 'nowhere:score': cannot import nowhere"):
        preflight(smoke(tmp_path, "run", only_there("nowhere")))
    preflight(smoke(tmp_path, "run", only_there("nowhere"), "reward.runtime_env={}"))


def test_a_term_that_cannot_be_built_is_what_every_call_says(tmp_path: Path) -> None:
    (tmp_path / ".seen").touch()
    config = smoke(tmp_path, "run", only_there("nowhere"), "reward.runtime_env={}")
    worker = RewardActor("reward-0", config, tmp_path / ".seen", {"REDIF_TEST_HANDED": "over"})
    assert os.environ.pop("REDIF_TEST_HANDED") == "over"
    for call in (worker.ready, worker.score):
        with pytest.raises(RewardError, match=r"reward.terms.mine: callable 'nowhere:score': cannot import nowhere"):
            call()


def within(folder: Path, text: str) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


@pytest.mark.long
@pytest.mark.cluster
def test_a_run_whose_reward_only_its_workers_have(learned: Path) -> None:
    """Calibrated, validated and evaluated; the token is in no file of the run, of MLflow or of Ray."""
    import ray

    assert importlib.util.find_spec("only_there") is None
    found = summary(learned)
    assert found["calibration"]["mine"] == found["calibration"]["mse"]
    for arm in ("teacher_full", "teacher_best", "teacher_few", "student"):
        paired = found["arms"][arm]["paired"]
        assert paired["mine"] == paired["mse"] == pytest.approx(-paired["pixel_mse"], rel=1e-5)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
    runs, modules = learned.parent, str(learned.parents[1] / "modules")
    assert within(logs, modules) and within(runs, modules)  # so the token would be seen there
    assert not within(logs, SECRET) and not within(runs, SECRET)


@pytest.mark.long
@pytest.mark.cluster
def test_a_term_that_fails_there_is_one_error_at_start(cluster: None, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as file:
        file.writestr("modules/broken_there.py", "raise OSError('no weights on this node')\n")
    uri = (tmp_path / "modules.zip").as_uri()
    config = smoke(tmp_path, "run", only_there("broken_there"), f"reward.runtime_env.py_modules=['{uri}']")
    with pytest.raises(RewardError) as caught:
        distill(config)
    said, line = str(caught.value).splitlines()
    wrong = "cannot import broken_there: OSError: no weights on this node"
    assert said == f"reward.terms.mine: callable 'broken_there:score': {wrong}"
    assert line.endswith("broken_there.py:1, in <module>: raise OSError('no weights on this node')")


@pytest.mark.cluster
def test_what_is_wrong_with_one_worker_is_said_while_others_load(cluster: None) -> None:
    import ray

    class Worker:
        def ready(self) -> None:
            time.sleep(600)

    class Wrong:
        def ready(self) -> None:
            raise RewardError("wrong")

    def started(kind: type, **options: Any) -> Any:
        return ray.remote(kind).options(num_cpus=0, **options, **RESTARTABLE).remote()

    actors = [started(Worker), started(Wrong), started(Worker, runtime_env={"py_modules": ["file:///nowhere.zip"]})]
    try:
        with pytest.raises(RewardError, match="wrong"):
            all_ready(actors[:2], StopRequest())
        with pytest.raises(ConfigError, match=r"^reward.runtime_env: a node cannot make this .*nowhere.zip"):
            all_ready(actors[::2], StopRequest())
    finally:
        for actor in actors:
            ray.kill(actor)
