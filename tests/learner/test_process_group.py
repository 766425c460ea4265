"""Ranks of one node meet in the file that was made for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from redif_ray.learner.process_group import INTERFACE, empty_file, meet


def test_the_file_may_lie_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an address, a # or a ? would end the path, and the ranks of all runs would meet in one file."""
    folder = tmp_path / "job#1?a b%20"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv(INTERFACE, "lo")
    path = Path(empty_file())
    assert path.parent == folder and path.stat().st_mode & 0o777 == 0o600
    meet(0, "gloo", str(path), 1, 60)
    try:
        assert path.stat().st_size > 0 and list(tmp_path.iterdir()) == [folder]
    finally:
        dist.destroy_process_group()
