"""A busy machine is told, an idle one is not, and threads leave its cores to others while they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from redif_ray.busy import busy, share_cores


@pytest.mark.parametrize(
    ("load", "taken", "told"),
    [(0.4, 100, False), (6.0, 100, False), (6.1, 100, True), (15.0, 80, True), (15.0, 50, False)],
    ids=["idle", "a few", "busy", "very busy", "what was busy has ended"],
)
def test_a_load_above_the_cores_is_told(load: float, taken: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda _: taken)
    assert bool(text := busy()) == told and (f"a load of {load:.0f} on 4 cores" in text) == told


@pytest.mark.parametrize(("own", "expected"), [(None, "1000"), ("7", "7")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", own or "")
    if own is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == expected


@pytest.mark.slow
def test_the_command_line_says_so_before_torch_reads_it() -> None:
    code = """
import os, sys
from redif_ray.cli import main
sys.argv = ["redif", "--version"]
try:
    main()
except SystemExit:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-2:] == ["1000", "False"]
