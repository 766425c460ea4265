from __future__ import annotations

import json
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from redif_ray.data.targets import TargetStore, TargetStoreError, content_hash
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.types import Condition

IDENTITY = {"teacher": "abc", "steps": 20, "guidance": 1.5, "seed": 0}
GROUPS, CONDITIONS = [5, 2**63 + 7, 6], [3, None, "a boot, ü"]


def images(count: int = 3, seed: int = 0) -> np.ndarray:
    return noise.uniform(count * 2 * 3 * 4, Stream.CALIBRATION, seed=seed).astype(np.float32).reshape(count, 2, 3, 4)


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    return TargetStore(tmp_path, IDENTITY)


def test_what_is_put_is_got_to_the_bit(store: TargetStore, tmp_path: Path) -> None:
    assert store.get(Stream.TRAIN, GROUPS, CONDITIONS) is None
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images().transpose(0, 1, 3, 2))  # not contiguous
    for reader in (store, TargetStore(str(tmp_path), dict(reversed(IDENTITY.items())))):
        found = reader.get(Stream.TRAIN, GROUPS, CONDITIONS)
        assert found is not None and found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
        assert np.array_equal(found, images().transpose(0, 1, 3, 2))


@pytest.mark.parametrize(
    ("stream", "groups", "conditions"),
    [
        (Stream.VALIDATION, GROUPS, CONDITIONS),
        (Stream.TRAIN, GROUPS[:2], CONDITIONS[:2]),
        (Stream.TRAIN, [5, 6, 2**63 + 7], CONDITIONS),
        (Stream.TRAIN, GROUPS, [4, None, "a boot, ü"]),
        (Stream.TRAIN, GROUPS, [3, 0, "a boot, ü"]),
        (Stream.TRAIN, GROUPS, ["3", None, "a boot, ü"]),
    ],
)
def test_other_rows_are_not_found(
    stream: Stream, groups: list[int], conditions: list[Condition], store: TargetStore
) -> None:
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    assert store.get(stream, groups, conditions) is None


@pytest.mark.parametrize("change", [{"seed": 1}, {"guidance": 1.5000001}, {"teacher": "abd"}, {"more": None}])
def test_another_teacher_is_not_found(change: dict[str, object], store: TargetStore, tmp_path: Path) -> None:
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    other = TargetStore(tmp_path, {**IDENTITY, **change})
    assert other.get(Stream.TRAIN, GROUPS, CONDITIONS) is None
    assert json.loads((other.folder / "about.json").read_text()) == {**IDENTITY, **change}
    assert json.loads((store.folder / "about.json").read_text()) == IDENTITY


def test_the_hash_is_of_the_content() -> None:
    assert content_hash({"a": 1, "b": [1, None]}) == content_hash({"b": [1, None], "a": 1})
    assert content_hash([[0, 1, 2]]) != content_hash([[0, 12]])


@pytest.mark.slow
def test_a_corrupt_byte_anywhere_is_an_error_or_harmless(store: TargetStore) -> None:
    """Never other numbers: pages carry checksums, and a footer that still parses must agree with the rows."""
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    path = store.path(Stream.TRAIN, GROUPS, CONDITIONS)
    whole, errors = path.read_bytes(), 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            assert np.array_equal(store.get(Stream.TRAIN, GROUPS, CONDITIONS), images())
        except TargetStoreError as error:
            errors += 1
            assert str(path) in str(error) and "delete it" in str(error)
    assert errors > len(whole) // 7 // 2


def test_a_corrupt_pixel_is_an_error(store: TargetStore) -> None:
    """Random float32 do not compress: zstd stores them as they are, and the first one can be found."""
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    path = store.path(Stream.TRAIN, GROUPS, CONDITIONS)
    raw = bytearray(path.read_bytes())
    raw[raw.index(images()[1].tobytes()[8:40])] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(TargetStoreError, match=rf"{path} is corrupt .*delete it"):
        store.get(Stream.TRAIN, GROUPS, CONDITIONS)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_an_error(keep: int, store: TargetStore) -> None:
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    path = store.path(Stream.TRAIN, GROUPS, CONDITIONS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TargetStoreError, match=f"{path} is corrupt"):
        store.get(Stream.TRAIN, GROUPS, CONDITIONS)


def test_a_file_of_other_groups_is_an_error(store: TargetStore) -> None:
    store.put(Stream.TRAIN, [1, 2, 3], CONDITIONS, images())
    store.path(Stream.TRAIN, [1, 2, 3], CONDITIONS).rename(store.path(Stream.TRAIN, GROUPS, CONDITIONS))
    with pytest.raises(TargetStoreError, match=r"images of groups \[1, 2, 3\]"):
        store.get(Stream.TRAIN, GROUPS, CONDITIONS)


def test_a_folder_in_the_place_of_a_file(store: TargetStore) -> None:
    path = store.path(Stream.TRAIN, GROUPS, CONDITIONS)
    path.mkdir()
    with pytest.raises(TargetStoreError, match=f"{path} is corrupt"):
        store.get(Stream.TRAIN, GROUPS, CONDITIONS)
    with pytest.raises(TargetStoreError, match=f"cannot write {path}"):
        store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    assert {p.name for p in store.folder.iterdir()} == {"about.json", path.name}


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TargetStoreError, match=f"the target store {root}.* cannot be used: .*set teacher.store"):
            TargetStore(root, IDENTITY)


@pytest.mark.parametrize("bad", [images().astype(np.float64), images(2), np.full((3, 1, 2, 2), np.nan, np.float32)])
def test_images_that_cannot_be_targets_are_not_stored(bad: np.ndarray, store: TargetStore) -> None:
    with pytest.raises(ValueError, match=r"targets .*(expected float32 \[3, C, H, W\]|not finite)"):
        store.put(Stream.TRAIN, GROUPS, CONDITIONS, bad)
    assert store.get(Stream.TRAIN, GROUPS, CONDITIONS) is None


def test_two_writers_at_once_leave_one_good_file(store: TargetStore, tmp_path: Path) -> None:
    failures: list[Exception] = []
    start = threading.Barrier(4)

    def write() -> None:
        try:
            start.wait()
            for _ in range(10):
                mine = TargetStore(tmp_path, IDENTITY)
                mine.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
                assert np.array_equal(mine.get(Stream.TRAIN, GROUPS, CONDITIONS), images())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {p.name for p in store.folder.iterdir()} == {"about.json", store.path(Stream.TRAIN, GROUPS, CONDITIONS).name}


def test_a_full_disk_leaves_nothing_behind(store: TargetStore) -> None:
    """No file may grow beyond 100 bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(TargetStoreError, match=r"cannot write .*parquet: .*free space or set teacher.store"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in store.folder.iterdir()] == ["about.json"]
    store.put(Stream.TRAIN, GROUPS, CONDITIONS, images())
    assert np.array_equal(store.get(Stream.TRAIN, GROUPS, CONDITIONS), images())


def test_features_are_kept_beside_their_images(store: TargetStore, tmp_path: Path) -> None:
    """By encoder and by rows; a store of other images has none of them."""
    features = images(3, seed=4)
    one, two = content_hash("one"), content_hash("two")
    assert store.features(Stream.TRAIN, GROUPS, CONDITIONS).get(one) is None
    store.features(Stream.TRAIN, GROUPS, CONDITIONS).put(one, features.transpose(0, 1, 3, 2))
    found = TargetStore(tmp_path, IDENTITY).features(Stream.TRAIN, GROUPS, CONDITIONS).get(one)
    assert found is not None and np.array_equal(found, features.transpose(0, 1, 3, 2))
    for other, encoder, stream in (
        (store, two, Stream.TRAIN),
        (store, one, Stream.HELD_OUT),
        (TargetStore(tmp_path, IDENTITY | {"seed": 1}), one, Stream.TRAIN),
    ):
        assert other.features(stream, GROUPS, CONDITIONS).get(encoder) is None
    assert store.features(Stream.TRAIN, GROUPS, CONDITIONS, "uint8").get(one) is None
    path = store.features(Stream.TRAIN, GROUPS, CONDITIONS).path(one)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TargetStoreError, match=f"{path} is corrupt .* delete it, and it is computed again"):
        store.features(Stream.TRAIN, GROUPS, CONDITIONS).get(one)
