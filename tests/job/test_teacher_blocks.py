"""Teacher images are sampled in blocks of `teacher.batch`, alike whichever worker or unit asks first."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import write_clip
from tiny_models import write_unet
from tiny_pipelines import write_sd

from redif_ray.config import Config, load
from redif_ray.data.conditions import load_conditions
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights
from redif_ray.planning.rounds import RoundPlan
from redif_ray.workers.reward import TeacherRewardWorker

THREE = {"in_channels": 3, "out_channels": 3, "sample_size": 16}  # images that the encoder takes


def config(root: Path, *overrides: str) -> Config:
    """Five rounds of 6 groups in units of 2, blocks of 8."""
    fixed = (f"run.root={root}", "warm_start.rounds=0", "learner.rounds=5", "tracking.uri=off", "teacher.steps=2")
    units = ("rollout.groups=6", "rollout.siblings=4", "rollout.unit_groups=2", "teacher.batch=9")
    found: Config = load("smoke", [*fixed, *units, *overrides])
    return found


def plan(root: Path, *overrides: str) -> RoundPlan:
    made = config(root, *overrides)
    return RoundPlan(made, load_conditions(made.conditions, num_classes=10, captions=False, seed=0))


@pytest.mark.parametrize("pool", ["null", "16"])
def test_blocks_are_of_whole_units_and_do_not_overlap(pool: str, tmp_path: Path) -> None:
    found = plan(tmp_path, f"conditions.pool={pool}")
    blocks = [(unit, found.sampled_with(unit)) for round in range(found.rounds) for unit in found.units(round)]
    for unit, block in blocks:
        first = block.groups.index(unit.groups[0])
        assert block.groups[first : first + 2] == unit.groups
        assert block.conditions[first : first + 2] == unit.conditions
    distinct = {block.groups for _, block in blocks}
    count = 30 if pool == "null" else 16
    assert sorted(itertools.chain(*distinct)) == list(range(count))
    assert Counter(map(len, distinct)) == ({8: 3, 6: 1} if pool == "null" else {8: 2})


@pytest.mark.parametrize("override", ["teacher.batch=1", "conditions.pool=15", "conditions.pool=40"])
def test_units_that_no_block_holds_whole_are_sampled_alone(override: str, tmp_path: Path) -> None:
    found = plan(tmp_path, override)
    assert all(found.sampled_with(unit) == unit for round in range(found.rounds) for unit in found.units(round))


@pytest.mark.slow
def test_features_are_kept_apart_by_what_images_were_sampled_with(tmp_path: Path) -> None:
    """Their last bits differ, so that a run would depend on another that shared its store."""
    clip = write_clip(tmp_path / "clip")
    terms = f"reward.terms={{clip: {{options: {{model: {clip}}}}}}}"
    given = (
        f"teacher.store={tmp_path / 'store'}",
        f"teacher.model={write_unet(tmp_path / 'teacher', network=THREE)}",
        terms,
    )
    for batch in (2, 8):
        loop = PlainLoop(config(tmp_path, *given, f"teacher.batch={batch}", "evaluation.judge=random-features"))
        loop.play(loop.plan.units(0)[0], get_weights(loop.student), "policy-0")
    files = sorted(path.parent.name.partition("-")[2] for path in (tmp_path / "store").rglob("*.safetensors"))
    assert files == ["", "float32-8"]


def test_a_deployed_unit_has_no_block(tmp_path: Path) -> None:
    found, worker = plan(tmp_path), TeacherRewardWorker("reward-0", config(tmp_path))
    unit, other = found.units(0)[:2]
    assert worker.stored([unit, other])[1] == [False, False]
    meta, images = worker.targets(unit)
    assert meta.work[0].network_calls == 2 * 2 and images.shape == (2, 1, 28, 28)
    assert worker.stored([unit, other])[1] == [True, False]


@pytest.mark.slow
def test_who_asks_first_does_not_matter_and_the_others_read(tmp_path: Path) -> None:
    """Also after the store is lost: the whole block is sampled again, so that rounding stays what it was."""
    found = plan(tmp_path)
    units = [found.units(0)[0], found.units(0)[2], found.units(1)[0]]
    block = found.sampled_with(units[0])
    assert all(found.sampled_with(unit).groups == block.groups for unit in units[1:])
    seen: list[list[np.ndarray]] = []
    for order in (units, units[::-1]):
        worker = TeacherRewardWorker("reward-0", config(tmp_path, f"teacher.store={tmp_path / 'store'}"))
        asked = {unit: worker.targets(unit, block) for unit in order}
        assert [meta.work[0].network_calls for meta, _ in asked.values()] == [8 * 2, 0, 0]
        seen.append([asked[unit][1] for unit in units])
        shutil.rmtree(tmp_path / "store")
    for one, other in zip(*seen, strict=True):
        assert np.array_equal(one, other)


def test_the_images_are_those_of_smaller_batches_up_to_rounding(tmp_path: Path) -> None:
    worker = TeacherRewardWorker("reward-0", config(tmp_path))
    found = plan(tmp_path)
    unit = found.units(1)[2]
    block = found.sampled_with(unit)
    assert block.groups.index(unit.groups[0]) > 0
    _, alone = worker.targets(unit)
    _, together = worker.targets(unit, block)
    assert np.abs(alone - together).max() < 1e-5


@pytest.mark.slow
def test_a_run_samples_every_image_once(tmp_path: Path) -> None:
    loop = PlainLoop(config(tmp_path, "learner.rounds=2"))
    calls = []
    for round in range(2):
        for unit in loop.plan.units(round):
            calls.append(loop.reward.sent_targets(unit, loop.plan.sampled_with(unit))[0].work[0].network_calls)
    assert calls == [8 * 2, 0, 0, 0, 4 * 2, 0]  # the last block ends with the phase


@pytest.mark.slow
def test_captions_of_a_block_are_encoded_with_it(tmp_path: Path) -> None:
    teacher = write_sd(tmp_path / "teacher")
    given = (f"teacher.model={teacher}", "conditions.source=emoji", "evaluation.judge=random-features")
    loop = PlainLoop(config(tmp_path, *given))
    unit = loop.plan.units(0)[0]
    block = loop.plan.sampled_with(unit)
    loop.reward.sent_targets(unit, block)
    store = loop.rollout.teacher.store  # type: ignore[attr-defined]
    assert all(store.path(caption).exists() for caption in block.conditions)
