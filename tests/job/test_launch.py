"""The private cluster of a command, which starts beside its imports: whatever comes between, nothing is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from smoke_runs import start

pytestmark = [pytest.mark.cluster, pytest.mark.long]
DEADLINE = 120
RAY = "with started(load('smoke')): pass"
JOB = "import redif_ray.job.distill"


def imports(code: str) -> set[str]:
    """What is imported by `code`, run where the command line is after it has read its configuration."""
    script = f"""
import sys
import redif_ray.job.launch
from redif_ray.config import load
from redif_ray.cluster.connect import started
before = {{*sys.modules}}
{code}
print(*({{*sys.modules}} - before))
"""
    return {*subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()}


def test_two_threads_that_import_do_not_meet() -> None:
    """Where one waits for a package that the other has begun, Python may hand out half of it."""
    ray, job = imports(RAY), imports(JOB)
    assert "aiohttp" in ray and "torch" in job
    assert {name.partition(".")[0] for name in ray & job} <= sys.stdlib_module_names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "early")
    deadline = time.monotonic() + DEADLINE
    while not (family := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 128 + number, output
    assert "stopped" in output and "Traceback" not in output
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_found_wrong_later_ends_the_cluster_too(tmp_path: Path) -> None:
    process = start(tmp_path, "wrong", "student.schedule=karas")
    family: set[psutil.Process] = set()
    while process.poll() is None:
        try:
            family |= set(psutil.Process(process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    output = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 2, output
    assert "schedule 'karas' is unknown" in output and "Traceback" not in output
    assert family and psutil.wait_procs(family, timeout=20)[1] == []
    assert list(tmp_path.iterdir()) == []
