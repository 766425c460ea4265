"""The disk that a run fills is counted from shapes, and compared with what is free before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_pipelines import write_sd3

from redif_ray.config import Config, ConfigError, load
from redif_ray.data.conditions import Conditions
from redif_ray.models.registry import load_teacher
from redif_ray.models.text import TextModel
from redif_ray.planning import disk as space
from redif_ray.planning import factory

MB = 10**6


def config(root: Path, *overrides: str) -> Config:
    if not (root / "teacher").exists():
        write_sd3(root / "teacher")
    return load("smoke", [f"run.root={root}", f"teacher.model={root / 'teacher'}", "tracking.uri=off", *overrides])


@pytest.mark.slow
def test_captions_are_stored_in_the_encoders_dtype_and_come_back_to_the_bit(tmp_path: Path) -> None:
    """With T5, whose padded tokens have states of their own."""
    made = config(tmp_path, "networks.precision=bfloat16")
    first = factory.model(made, made.teacher.model, "cpu")
    assert isinstance(first, TextModel) and first.store is not None
    fresh = first.encode(["a cat", None])
    kept = first.store.get("a cat")
    assert kept is not None and {value.dtype for value in kept.values()} == {torch.bfloat16}
    assert sum(value.nbytes for value in kept.values()) == space.caption_bytes(first, torch.bfloat16)
    assert first.store.path("a cat").stat().st_size < 1.1 * space.caption_bytes(first, torch.bfloat16) + 500
    again = factory.model(made, made.teacher.model, "cpu")
    assert isinstance(again, TextModel)
    read = again.encode(["a cat", None])
    assert not again.frozen.loaded  # they came from the store
    assert all(torch.equal(read[name], value) and value.dtype == torch.float32 for name, value in fresh.items())


@pytest.mark.slow
def test_as_many_captions_are_counted_as_are_drawn_or_known(tmp_path: Path) -> None:
    made = config(tmp_path, "warm_start.rounds=2", "learner.rounds=3", "evaluation.judge=random-features")
    teacher = load_teacher(made.teacher)
    each = space.caption_bytes(teacher, torch.float32)
    training = 3 * 6 + 8 + 10 + 2 * 4  # policy, validation, search, calibration
    held_out = 2 * 40  # with the judge's reference
    every = space.disk(made, teacher)
    assert every.targets == (training + held_out) * 4 * torch.Size(teacher.image_shape).numel()
    assert every.captions == (1 + training + 2 * 8 + held_out) * each
    pool = config(tmp_path, "learner.rounds=3", "evaluation.judge=random-features", "conditions.pool=5")
    assert space.disk(pool, teacher).targets == every.targets - 13 * 4 * torch.Size(teacher.image_shape).numel()
    few = space.disk(made, teacher, Conditions(("a", "b", "c"), ("d",)))
    assert few.captions == 5 * each and (few.run, few.targets) == (every.run, every.targets)
    assert space.disk(load("smoke"), load_teacher(load("smoke").teacher)).captions == 0


def test_too_little_room_is_one_error_and_what_is_there_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load("smoke", [f"run.root={tmp_path / 'runs'}", f"teacher.store={tmp_path / 'store'}"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * MB))
    wanted = space.Disk(4 * MB, 5 * MB, 1 * MB)
    with pytest.raises(ConfigError) as caught:
        space.check_disk(made, wanted)
    run, store = tmp_path / "runs" / "smoke", tmp_path / "store"
    assert str(caught.value).startswith(f"this run writes up to 4 MB to {run} and 6 MB to {store} (run.root: ")
    assert "and 9 MB are free there; free space, or set these keys" in str(caught.value)
    assert not run.exists() and not store.exists()
    (store / "abc").mkdir(parents=True)
    (store / "abc" / "images.parquet").write_bytes(bytes(MB))
    space.check_disk(made, wanted)
