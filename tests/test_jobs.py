"""What `ray job submit --working-dir .` takes along from a checkout, and the commands of the pages that say so."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

CHECKOUT = Path(__file__).parents[1]
LIMIT_MB = 30  # 23.2 are the shipped models; Ray warns near 100 and refuses above 500
COMMANDS = re.compile(r"\*\*A cluster that is up:\*\*\n\n```bash\n(.*?)```", re.S)


def test_the_upload_is_small_and_holds_what_a_job_needs(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(CHECKOUT), package, include_gitignore=True)
    names = ZipFile(package).namelist()
    assert {"jobs/distill.py", "configs/fashion_mnist.yaml", "redif_ray/cli.py", "pyproject.toml"} <= set(names)
    assert not [n for n in names if n.startswith((".git/", ".venv", "tests/", "docs/", "benchmarks/", "runs/"))]
    assert package.stat().st_size < LIMIT_MB * 10**6


def free_ports(count: int) -> list[str]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


@contextmanager
def head(environment: dict[str, str]) -> Iterator[str]:
    """`ray start --head` on free ports, whose processes end with it; the address of its dashboard."""
    folder = tempfile.mkdtemp(prefix="rr", dir="/tmp")
    port, dashboard, agent, metrics = free_ports(4)
    places = (f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}")
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}", *places]
    with subprocess.Popen(
        [*command, f"--metrics-export-port={metrics}"], env=environment, start_new_session=True
    ) as it:
        try:
            yield f"127.0.0.1:{dashboard}"
        finally:
            it.send_signal(signal.SIGTERM)
            it.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
@pytest.mark.parametrize("token", [False, True])
def test_the_commands_for_a_cluster_that_is_up_work_as_they_are_written(token: bool, tmp_path: Path) -> None:
    """On a plain `ray start --head` of a user who has no token, and with the token that the tutorial makes first."""
    own = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | own | ({"RAY_AUTH_MODE": "token"} if token else {})

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=300
        )

    assert not token or shell("ray get-auth-token --generate").returncode == 0
    found = COMMANDS.search((CHECKOUT / "docs" / "operations.md").read_text())
    assert found is not None
    with head(environment) as dashboard:
        small = {"127.0.0.1:8265": dashboard, "/shared/runs": str(tmp_path), "fashion_mnist.yaml": "smoke.yaml"}
        text = found[1].replace("held_out=10000", "held_out=50")
        for written, here in small.items():
            text = text.replace(written, here)
        submit, evaluate, resume = (f"ray job submit{each}" for each in text.split("ray job submit")[1:])
        deadline = time.monotonic() + 90
        while (done := shell(submit)).returncode and time.monotonic() < deadline and not (tmp_path / "first").exists():
            time.sleep(1)  # until the head is up
        assert done.returncode == 0 and (tmp_path / "first" / "summary.json").exists(), done.stdout + done.stderr
        for command, told in () if token else ((evaluate, "written to"), (resume, "is finished")):
            done = shell(command)
            assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr
