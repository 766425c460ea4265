from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redif_ray.checkpoint import (
    MANIFEST,
    STATE,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    pack,
    save_checkpoint,
    unpack,
    weights_sha256,
)

META = {"round": 7, "best": 0.1 + 0.2, "names": ["a", "ü"], "none": None, "nested": {"x": [1, 2.5]}}


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {
        "student/w": torch.linspace(-value, value, 12).reshape(3, 4).T,  # not contiguous
        "bf16": torch.tensor([1e-30, 3.14159, -0.0, float("inf")], dtype=torch.bfloat16),
        "int64": torch.tensor([2**62 + 1, -1]),
        "scalar": torch.tensor(value, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "nan": torch.tensor([float("nan"), -0.0]),
    }


def content(value: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return value.dtype, value.shape, value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal to the bit, NaN and minus zero included."""
    return {k: content(v) for k, v in a.items()} == {k: content(v) for k, v in b.items()}


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "deep" / "c", tensors(), META)
    found, meta = load_checkpoint(str(tmp_path / "deep" / "c"))
    assert same(found, tensors()) and meta == META
    assert entries(tmp_path / "deep") == ["c"]


def test_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(tmp_path / "c", tensors(value), {"value": value})
    found, meta = load_checkpoint(tmp_path / "c")
    assert same(found, tensors(3.0)) and meta == {"value": 3.0}
    assert entries(tmp_path) == ["c"]


def truncate(folder: Path) -> None:
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:-1])


def alter(folder: Path) -> None:
    raw = bytearray((folder / STATE).read_bytes())
    raw[-3] ^= 1
    (folder / STATE).write_bytes(bytes(raw))


def manifest(folder: Path, **changes: Any) -> None:
    stored = json.loads((folder / MANIFEST).read_text())
    stored = {k: v for k, v in {**stored, **changes}.items() if v is not None}
    (folder / MANIFEST).write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (truncate, "state.safetensors is missing or does not match its checksum; to go on from an earlier"),
        (alter, "state.safetensors is missing or does not match its checksum; to go on from an earlier"),
        (lambda f: (f / STATE).unlink(), "state.safetensors is missing or does not match"),
        (lambda f: (f / MANIFEST).unlink(), "is not a checkpoint: it has no manifest.json"),
        (lambda f: (f / MANIFEST).write_text('{"format": 1, '), "manifest.json is corrupt"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), "manifest.json is corrupt"),
        (lambda f: (f / MANIFEST).write_text("[1]"), "manifest.json is corrupt"),
        (lambda f: manifest(f, sha256={}), "manifest.json is corrupt"),
        (lambda f: manifest(f, sha256=[]), "manifest.json is corrupt"),
        (lambda f: manifest(f, meta=None), "manifest.json is corrupt"),
        (lambda f: manifest(f, meta=[1]), "manifest.json is corrupt"),
        (lambda f: ((f / MANIFEST).unlink(), os.mkfifo(f / MANIFEST)), "is not a checkpoint: it has no manifest.json"),
        (lambda f: ((f / STATE).unlink(), (f / STATE).symlink_to("/dev/zero")), "state.safetensors is missing"),
        (lambda f: manifest(f, format=2), "format 2; this version reads 1"),
        (shutil.rmtree, "is not a checkpoint"),
        (lambda f: (shutil.rmtree(f), f.write_text("x")), "is not a checkpoint"),
    ],
)
def test_damage_is_found_and_named(damage: Any, pattern: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tensors(), META)
    damage(tmp_path / "c")
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load_checkpoint(tmp_path / "c")
    assert str(tmp_path / "c") in str(caught.value)


@pytest.mark.parametrize("limit", [0, 50, 2000])
def test_a_full_disk_leaves_the_previous_one(limit: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tensors(), META)
    big = {"w": torch.zeros(1000)}
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*/c: .*intact"), small_disk(limit):
        save_checkpoint(tmp_path / "c", big, {})
    assert same(load_checkpoint(tmp_path / "c")[0], tensors())
    assert entries(tmp_path) == ["c"]
    save_checkpoint(tmp_path / "c", big, {})
    assert same(load_checkpoint(tmp_path / "c")[0], big)


class Killed(BaseException):
    """The end of the process at some step; what stands under a final name must be as whole as after SIGKILL."""


OWN = ("checkpoint.file_sha256", "files._flush", "files._replace")
STEPS = ["safetensors.torch.save_file", *(f"redif_ray.{name}" for name in OWN)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(
    step: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "c", tensors(1.0), {"value": 1})
    real = resolve_name(step)

    def killed(*arguments: Any) -> None:
        if when == "after":
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(step, killed)
        save_checkpoint(tmp_path / "c", tensors(2.0), {"value": 2})
    found, meta = load_checkpoint(tmp_path / "c")
    assert same(found, tensors(meta["value"]))
    assert meta["value"] == (2 if (step, when) == (STEPS[-1], "after") else 1)
    save_checkpoint(tmp_path / "c", tensors(3.0), {})
    assert same(load_checkpoint(tmp_path / "c")[0], tensors(3.0)) and entries(tmp_path) == ["c"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_the_two_renames_loses_neither(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "c", tensors(1.0), {"value": 1})
    real, done = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Killed
        done.append(target)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        if renames < 2:
            with pytest.raises(Killed):
                save_checkpoint(tmp_path / "c", tensors(2.0), {"value": 2})
        else:
            save_checkpoint(tmp_path / "c", tensors(2.0), {"value": 2})
    assert (tmp_path / "c").exists() == (renames != 1)
    place = find_checkpoint(tmp_path / "c")
    found, meta = load_checkpoint(tmp_path / "c")
    assert place is not None and same(found, tensors(meta["value"])) and meta["value"] == (2 if renames == 2 else 1)
    with pytest.raises(CheckpointError), small_disk(10):  # and a second misfortune does not take it either
        save_checkpoint(tmp_path / "c", tensors(3.0), {})
    assert same(load_checkpoint(tmp_path / "c")[0], found)
    save_checkpoint(tmp_path / "c", tensors(4.0), {})
    assert same(load_checkpoint(tmp_path / "c")[0], tensors(4.0)) and entries(tmp_path) == ["c"]


def test_a_name_that_was_never_saved_is_not_found(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "c") is None


def test_files_reach_the_disk_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd))[1]
    )
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append(f"rename {to.name}"), rename(self, to))[1])
    save_checkpoint(tmp_path / "c", tensors(), META)
    at = events.index("rename c")
    assert {STATE, MANIFEST, ".c.partial"} <= set(events[:at]) and tmp_path.name in events[at:]


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.linspace(-1, 1, 12).reshape(4, 3) * (step + 1)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_restored_optimiser_takes_the_same_steps(cut: int, tmp_path: Path) -> None:
    whole = network(0)
    train(whole, adamw(whole), 0, 8)

    model = network(0)
    names = [name for name, _ in model.named_parameters()]
    optimizer = adamw(model)
    train(model, optimizer, 0, cut)
    save_checkpoint(tmp_path / "c", pack("m", model.state_dict()) | pack("o", optimizer_tensors(optimizer, names)), {})
    found, _ = load_checkpoint(tmp_path / "c")
    resumed = network(1)
    resumed.load_state_dict(unpack("m", found))
    restored = adamw(resumed)
    load_optimizer(restored, names, unpack("o", found))
    train(resumed, restored, cut, 8)
    assert same(resumed.state_dict(), whole.state_dict())


def test_packing() -> None:
    values = {"a": torch.zeros(1), "b/c": torch.ones(1)}
    packed = pack("x", values) | pack("xy", {"a": torch.ones(2)})
    assert set(packed) == {"x/a", "x/b/c", "xy/a"}
    assert same(unpack("x", packed), values) and unpack("b", packed) == {}


def test_the_checksum_sees_everything_but_the_order() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 3)}
    others = [
        {"a": base["a"], "c": base["b"]},  # name
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"], "b": torch.zeros(3, 2)},  # shape
        {"a": base["a"], "b": torch.zeros(2, 3, dtype=torch.int32)},  # dtype, same bytes
        {"a": torch.tensor([1.0, np.nextafter(np.float32(2), np.float32(3))]), "b": base["b"]},  # value
        {"a": base["a"], "b": -base["b"]},  # minus zero
        {"a": base["a"]},
        {**base, "c": torch.zeros(0)},
        {},
    ]
    sums = [weights_sha256(w) for w in [base, *others]]
    assert len(set(sums)) == len(sums)
    assert weights_sha256({"b": base["b"], "a": base["a"]}) == sums[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16).view(torch.int16)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16).view(torch.float16)),
        (torch.zeros(()), torch.zeros(1)),
        (torch.zeros(1, 0), torch.zeros(0, 1)),
    ],
)
def test_the_checksum_tells_equal_bytes_apart(one: Tensor, other: Tensor) -> None:
    assert weights_sha256({"w": one}) != weights_sha256({"w": other})


def test_the_checksum_is_the_same_for_tensors_and_arrays_in_any_layout() -> None:
    values = {"w": torch.arange(6.0).reshape(2, 3), "s": torch.tensor(2.5), "i": torch.tensor([1, 2])}
    expected = weights_sha256(values)
    assert weights_sha256({k: v.numpy() for k, v in values.items()}) == expected
    assert weights_sha256({**values, "w": values["w"].T.contiguous().T}) == expected
    assert weights_sha256({**values, "w": np.asfortranarray(values["w"].numpy())}) == expected
    assert weights_sha256({**values, "w": nn.Parameter(values["w"])}) == expected
