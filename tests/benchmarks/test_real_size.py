"""A pipeline of the size of Stable Diffusion 1.5 goes through a whole run in the memory that `redif doctor` says."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.real_size import real_size
from redif_ray.interrupt import stop_requests


@pytest.mark.long
def test_the_peaks_are_those_that_doctor_says(tmp_path: Path) -> None:
    """Interrupted, resumed, evaluated, exported and sampled from: no process is more than a fifth off its number."""
    with stop_requests() as stop:
        found = real_size(tmp_path, stop, Console(), name="short", held_out=12).numbers
    for process in ("rollout", "reward", "learner", "export", "driver"):
        said, peak = found[f"{process}_said_mb"], found[f"{process}_peak_mb"]
        assert 0.8 * said <= peak <= 1.2 * said, (process, said, peak)
