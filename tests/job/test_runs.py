"""Whole runs of configs/smoke.yaml on a real Ray cluster: what they leave, and that nothing but the seed decides it."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch
from mlflow import MlflowClient
from several_nodes import Run
from smoke_runs import initial_sha256, last_checkpoint, last_weights, rounds, smoke, summary, train

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.config import ConfigError
from redif_ray.job.distill import distill
from redif_ray.learner.validation import GuardError
from redif_ray.models.registry import load_model
from redif_ray.rewards.base import RewardError
from redif_ray.runs.folder import RunError, RunFinished
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
NOTE = "mlflow.note.content"
REWARD = """
from pathlib import Path

import torch


def score(student, teacher, conditions):
    value = -(student - teacher).square().mean((1, 2, 3))
    return value * torch.nan if Path(__file__).with_name("seen").exists() else value
"""


def test_a_run_leaves_what_it_promises(first: Path, root: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "report.md",
        "samples.png",
        "reward.png",
        "schedule.png",
        "summary.json",
    ):
        assert (first / name).stat().st_size > 0, name
    found = summary(first)
    config = smoke(root, "first")
    assert last_weights(first) != initial_sha256(config)
    assert found["weights_sha256"] != initial_sha256(config)
    rows = read_rows(first / "metrics.jsonl")
    assert [row["round"] for row in rows] == [-1, 0, 1, 2, 3]
    assert [row["phase"] for row in rows[1:]] == ["warm_start", "policy", "policy", "policy"]
    assert all(v == 0 or v < 1e-5 for row in rows for k, v in row.items() if "fresh_log_ratio" in k)


def test_network_calls_are_those_that_paper_and_pencil_give(first: Path) -> None:
    """Smoke: N = 2, 8 rows of warm start, 3 rounds of 6 groups of 4, 4 teacher calls a target, 2 substeps a jump.

    Siblings share their first step: a group has 1 + 4 states.
    """
    compute = summary(first)["compute"]
    states = 2 * 8 + 3 * 6 * (1 + 4)
    assert compute["student_rollout"]["nfe"] == states
    assert compute["teacher"]["nfe"] == 4 * 3 * 6  # the warm start asks for no image
    assert compute["anchor"]["nfe"] == 2 * states
    assert compute["rewards"]["flops"] == 0  # no reward learns


def test_mlflow_has_every_round_once(first: Path, root: Path) -> None:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    run = client.get_run(summary(first)["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["student.steps"] == "2"
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [m.step for m in history] == [1, 2, 3]  # of the policy's rounds; the warm start has no reward
    calibration = summary(first)["calibration"]["mse"]
    assert {p: run.data.metrics[f"workings/calibration/mse/{p}"] for p in calibration} == calibration
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"report.md", "report.html", "samples.png", "images"} <= artifacts
    student = summary(first)["arms"]["student"]
    assert (
        run.data.metrics["verdict/frechet"] == student["frechet"] and "| trained student | 2 |" in run.data.tags[NOTE]
    )
    assert {used.dataset.name for used in run.inputs.dataset_inputs} == {"teacher", "classes", "reference images"}


def test_the_logged_model_samples(first: Path, root: Path) -> None:
    import mlflow
    import pandas as pd

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    run_id = summary(first)["mlflow"]["run_id"]
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    outputs = client.get_run(run_id).outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{outputs[0].model_id}")
    images = model.predict(pd.DataFrame({"seed": [1, 2], "label": [3, 7]}))
    assert images.shape == (2, 1, 28, 28) and 0 <= images.min() < images.max() <= 1
    with pytest.raises(mlflow.MlflowException, match="missing inputs \\['label'\\]"):
        model.predict(pd.DataFrame({"seed": [1]}))


def test_a_plain_loop_ends_with_the_weights_of_a_job_of_two_workers_each(first: Path, plain: str) -> None:
    assert last_weights(first) == plain
    workers = summary(first)["notes"]["workers"]
    assert sorted(workers) == ["reward-0", "reward-1", "rollout-0", "rollout-1"]
    assert all(worker["units"] > 0 for worker in workers.values())
    assert not list(first.glob(".seen-*"))


@pytest.mark.long
def test_two_ranks_agree_with_one(first: Path, root: Path) -> None:
    """Sums over ranks round differently: 4 steps of AdamW at 1e-4 stay within 2e-5 of one rank's."""
    ranks = train(smoke(root, "ranks", "learner.workers=2"))
    name = last_checkpoint(first).name
    one, two = (unpack("student", load_checkpoint(run / "checkpoints" / name)[0]) for run in (first, ranks))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-5


@pytest.mark.long
def test_ranks_that_share_the_student_agree_with_one(root: Path) -> None:
    """Also where they begin again in mid-run; the best, the average and versions still needed are gathered of both."""
    options = ("pipeline.staleness=1", "learner.ema=0.9")
    one = distill(smoke(root, "whole", *options))
    shared = smoke(root, "shared", "learner.workers=2", "learner.fsdp=true", *options)
    train(shared, until=2)
    two = distill(shared, resume=True)
    for name in (last_checkpoint(one).name, "best"):
        a, b = (load_checkpoint(run / "checkpoints" / name)[0] for run in (one, two))
        assert a.keys() == b.keys()
        assert max(float((a[key].double() - b[key].double()).abs().max()) for key in a) < 2e-5
    assert read_rows(two / "metrics.jsonl")[-1]["reward/mean"] == pytest.approx(
        read_rows(one / "metrics.jsonl")[-1]["reward/mean"], rel=1e-3
    )


def test_a_name_is_never_overwritten(first: Path, root: Path) -> None:
    before = (first / "summary.json").read_bytes()
    with pytest.raises(RunError, match="holds a finished run; read its report"):
        distill(smoke(root, "first"))
    with pytest.raises(RunFinished, match="is finished"):
        distill(smoke(root, "first"), resume=True)
    assert (first / "summary.json").read_bytes() == before


def test_a_resumed_run_must_be_the_same_run(root: Path, first: Path) -> None:
    (root / "other").mkdir()
    (root / "other" / "config.yaml").write_text((first / "config.yaml").read_text())
    with pytest.raises(ConfigError, match=r"learner.lr: 0.0001 then, 0.0002 now"):
        distill(smoke(root, "other", "learner.lr=2e-4"), resume=True)


@pytest.mark.long
def test_the_guard_stops_a_run_that_loses_modes(root: Path) -> None:
    wild = ("learner.lr=0.05", "guard.recall_floor=0.9", "validation.groups=40", "evaluation.judge=random-features")
    with pytest.raises(GuardError, match=r"recall fell to 0\.\d+ at round 2, below .* the student is losing modes"):
        distill(smoke(root, "wild", *wild))
    assert (root / "wild" / "checkpoints" / "round-000002").exists()
    assert not (root / "wild" / "summary.json").exists()


@pytest.mark.long
def test_a_run_whose_reward_turns_nan(root: Path, tmp_path: Path) -> None:
    """In training, in a worker: one error that names the term, a run that can be resumed."""
    (tmp_path / "reward.py").write_text(REWARD)
    terms = f"reward.terms={{mine: {{options: {{callable: '{tmp_path}/reward.py:score'}}}}}}"
    many = ("learner.rounds=5000", "validation.every=1000", "checkpoint.every=4")
    folder, run = root / "nan", Run(smoke(root, "nan", terms, *many))
    run.wait(lambda: rounds(folder) > 1)
    (tmp_path / "seen").touch()
    with pytest.raises(RewardError, match=r"'mine' is nan at row 0"):
        run.wait()
    assert (folder / "timeline.json").stat().st_size > 0
    assert (folder / "config.yaml").exists() and not (folder / "summary.json").exists()


def test_what_a_run_found_it_leaves(first: Path) -> None:
    assert ray.is_initialized()
    here = ray.get_runtime_context().gcs_address  # not whichever else runs on this machine
    assert not [
        a
        for a in ray.util.state.list_actors(address=here, filters=[("state", "=", "ALIVE")])
        if a.class_name in ("RolloutActor", "RewardActor", "Coordinator", "WeightStore")
    ]


def test_the_exported_student_is_the_run_s(first: Path) -> None:
    exported = load_model(first / "student").network.state_dict()
    best = unpack("deploy", load_checkpoint(first / "checkpoints" / "best")[0])
    assert all(torch.equal(exported[name], value) for name, value in best.items())
