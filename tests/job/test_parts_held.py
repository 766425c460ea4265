"""Which process of a text-to-image run loads text encoders and VAE. Workers are plain objects here."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from cases import mostly_long
from tiny_pipelines import write_sd, write_sd3

from redif_ray.config import Config, load
from redif_ray.learner.compute import Accounts
from redif_ray.loop import PlainLoop
from redif_ray.planning import factory
from redif_ray.workers.reward import TeacherRewardWorker

pytestmark = pytest.mark.slow
ENCODERS = {"text_encoder", "text_encoder_2", "text_encoder_3"}


def config(root: Path, *overrides: str, model: str = "teacher") -> Config:
    (root / "captions.txt").write_text("\n".join(f"a picture of {i}" for i in range(20)))
    if not (root / model).exists():
        (write_sd3 if "3" in model else write_sd)(root / model)
    found: Config = load(
        "smoke",
        [
            f"run.root={root}",
            f"teacher.model={root / model}",
            f"conditions.source={root / 'captions.txt'}",
            "tracking.uri=off",
            "evaluation.judge=random-features",
            "teacher.guidance=2.5",
            "teacher.steps=2",
            "rollout.groups=2",
            "warm_start.groups=2",
            *overrides,
        ],
    )
    return found


@pytest.mark.parametrize(
    ("model", "regulariser"),
    mostly_long(
        [("teacher", "kl"), ("teacher-3", "none"), ("teacher", "none"), ("teacher-3", "kl")],
        lambda model, regulariser: (model == "teacher") == (regulariser == "kl"),
    ),
)
def test_rollout_and_update_hold_the_network_alone(model: str, regulariser: str, tmp_path: Path) -> None:
    """Warm start and policy, guided siblings and a pull to the teacher: none of them has a caption to encode."""
    overrides = ("student.guidance=2.5", "rollout.guided=1", f"learner.regulariser={{kind: {regulariser}, weight: 1}}")
    loop = PlainLoop(config(tmp_path, *overrides[: 3 if regulariser == "kl" else 2], model=model))
    Accounts(loop.config)
    for round in range(3):
        loop.round(round)
    for network in (loop.student, loop.rollout.student, loop.rollout.teacher, loop.trainee.learning.teacher):
        assert network is not None and not network.parts
    own = {part for part in loop.reward.teacher.index if part in ENCODERS}
    assert loop.reward.teacher.parts.keys() == {*own, "vae"}


def test_draft_decodes_in_the_learner(tmp_path: Path) -> None:
    loop = PlainLoop(config(tmp_path, "method=draft", "draft.groups=4", "student.guidance=2.5"))
    loop.round(0), loop.round(1)
    assert list(loop.student.parts) == ["vae"]


def test_captions_are_encoded_where_the_images_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whose store of encodings is gone, or not this node's; who does not find one loads what it takes, and says so."""
    made = config(tmp_path)
    loop = PlainLoop(made)
    unit = loop.plan.units(loop.plan.phases[-1].first_round)[0]
    loop.reward.targets(unit)
    store = loop.rollout.teacher.store  # type: ignore[attr-defined]
    kept = {store.path(caption) for caption in (*unit.conditions, None)}
    assert set(store.folder.iterdir()) == kept
    for path in kept:
        path.unlink()
    again = TeacherRewardWorker("reward-1", made)
    meta, _ = again.targets(unit)
    assert meta.work[0].network_calls == 0 and set(store.folder.iterdir()) == kept
    assert set(again.teacher.parts) == {"text_encoder"}

    caplog.set_level(logging.WARNING, logger="redif_ray.models.text")
    caplog.clear()
    lonely = factory.teacher(config(tmp_path, f"teacher.store={tmp_path / 'elsewhere'}"), "cpu")
    found, expected = lonely.encode(unit.conditions), loop.rollout.student.encode(unit.conditions)
    lonely.encode(["another"])
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert caplog.messages == [f"{tmp_path / 'teacher' / part} is loaded" for part in ("tokenizer", "text_encoder")]


def test_nothing_is_guided_by_no_caption(tmp_path: Path) -> None:
    made = config(tmp_path, "teacher.guidance=1")
    worker = TeacherRewardWorker("reward-0", made)
    plan = PlainLoop(made).plan
    worker.encode(plan.units(0)[0])
    assert worker.teacher.store.path("a picture of 1").parent.is_dir()  # type: ignore[attr-defined]
    assert not worker.teacher.store.path(None).exists()  # type: ignore[attr-defined]
