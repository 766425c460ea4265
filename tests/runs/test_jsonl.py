"""Rows are in a file whole or not at all: after a kill, and on a disk that is full for a while."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redif_ray.errors import UserError
from redif_ray.job.metrics_writer import MetricsWriter
from redif_ray.runs.jsonl import append_rows, read_rows


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process can grow to `size` bytes: a write takes what fits, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_that_was_cut_short_is_not_read_and_not_written_on(path: Path) -> None:
    assert read_rows(path) == []
    append_rows(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3')
    before = path.read_bytes()
    assert read_rows(path) == [{"a": 1}, {"a": 2}] and path.read_bytes() == before
    append_rows(path, [{"a": 4}])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 4}\n'
    path.write_text('{"a": 1')
    append_rows(path, [{"a": 5}])
    assert path.read_text() == '{"a": 5}\n'


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    append_rows(path, [{"a": 1}])
    before = path.read_bytes()
    with room(len(before) + 5), pytest.raises(UserError, match=f"cannot write {path}: .*free space"):
        append_rows(path, [{"a": 2}, {"a": 3}])
    assert path.read_bytes() == before
    append_rows(path, [{"a": 4}])
    assert read_rows(path) == [{"a": 1}, {"a": 4}]


def test_a_spoilt_line_is_named(path: Path) -> None:
    path.write_text('{"a": 1}\n{"a": 2{"a": 3}\n{"a": 4}\n')
    with pytest.raises(UserError, match=f"{path}: line 2 is not JSON"):
        read_rows(path)


def test_the_writer_keeps_what_the_disk_did_not_take(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricsWriter(str(path.parent), None, "tests", "run", None)
    writer.log({"round": 0})
    with room(path.stat().st_size + 5):
        writer.log({"round": 1})
        writer.log({"round": 1})
        writer.lost("work unit of a name that is too long for what is left of the disk")
        with pytest.raises(UserError, match="free space"):
            writer.flush()
        assert [row["round"] for row in read_rows(path)] == [0]
        again = MetricsWriter(str(path.parent), None, "tests", "run", None)  # nothing is written over
        assert [row["round"] for row in again.latest(-1)] == [0]
    assert "kept in memory" in caplog.text and "not noted" in caplog.text
    assert [row["round"] for row in writer.latest(-1)] == [0, 1]
    writer.log({"round": 2})
    assert [row["round"] for row in read_rows(path)] == [0, 1, 2] and writer.all_lost() == {}
