"""Runs over several machines that share a folder and a network, as far as one kernel can have several."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Machine, machines, possible
from smoke_runs import last_weights, plain_weights, rounds, smoke, train

from redif_ray.runs.jsonl import read_rows

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.skipif(not possible(), reason="namespaces of the network take root on Linux, and iproute2"),
]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
PORT = 6379
HEALTH = {"period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 3}  # after which a node that is silent is gone
UP_SECONDS, DEADLINE = 60, 300
ON_TWO = (
    "rollout.max_workers=2",
    "rollout.labels={role: hand}",
    "reward.labels={role: head}",
    "learner.labels={role: head}",
)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that machines have in common."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def up(net: list[Machine], *roles: str) -> None:
    """Ray on the head and, by their roles, on the machines that come after it."""
    head = f"{net[0].address}:{PORT}"
    health = json.dumps({f"health_check_{key}": value for key, value in HEALTH.items()})
    net[0].start(
        *RAY,
        "--head",
        f"--port={PORT}",
        f"--node-ip-address={net[0].address}",
        "--num-cpus=0",
        "--include-dashboard=false",
        f"--system-config={health}",
    )
    wait(lambda: net[0].runs("raylet"), UP_SECONDS)
    for machine, role in zip(net[1:], roles, strict=True):
        machine.start(
            *RAY, f"--address={head}", f"--node-ip-address={machine.address}", "--num-cpus=4", f"--labels=role={role}"
        )


def wait(point: Callable[[], bool], seconds: float, run: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not point():
        assert time.monotonic() < deadline, "the point did not come"
        assert run is None or run.poll() is None, f"the run ended before the point: {run.communicate()[0]}"
        time.sleep(0.2)


def start(net: list[Machine], shared: Path, *overrides: str) -> subprocess.Popen[str]:
    return net[0].start(
        sys.executable,
        "-m",
        "redif_ray.cli",
        "distill",
        "smoke",
        f"ray.address={net[0].address}:{PORT}",
        f"run.root={shared}",
        "run.name=run",
        "tracking.uri=off",
        "ray.wait=true",
        *overrides,
    )


def end(run: subprocess.Popen[str]) -> str:
    output, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, output
    return output


def test_roles_on_machines_of_their_own(shared: Path, plain: str) -> None:
    with machines(None, None, None) as net:
        up(net, "head", "hand")
        run = start(net, shared, *ON_TWO)
        wait(lambda: net[2].runs("ray::RolloutActor"), DEADLINE, run)
        wait(lambda: net[1].runs("ray::RewardActor"), DEADLINE, run)
        end(run)
    assert last_weights(shared / "run") == plain


@pytest.mark.parametrize("share", ["false", "true"])
def test_ranks_on_two_machines(share: str, shared: Path, cluster: None) -> None:
    """Weights are those of two ranks on one machine."""
    ranks = ("learner.workers=2", f"learner.fsdp={share}")
    here = train(smoke(shared, "here", *ranks))
    with machines(None, None, None) as net:
        up(net, "head", "hand")
        run = start(net, shared, *ranks, "learner.cpus=3")
        wait(lambda: all(machine.runs("ray::RayTrainWorker") for machine in net[1:]), DEADLINE, run)
        end(run)
    assert last_weights(shared / "run") == last_weights(here)


def test_a_machine_whose_cable_is_pulled(shared: Path) -> None:
    """No process of it ends and nobody is told. What it had is done again on another."""
    long = ("learner.rounds=40", "validation.every=40", "checkpoint.every=40")
    expected = plain_weights(smoke(shared, "plain", *long))
    with machines(None, None, None, None) as net:
        up(net, "head", "hand", "hand")
        run = start(net, shared, *ON_TWO, *long)
        wait(lambda: (shared / "run/metrics.jsonl").exists() and rounds(shared / "run") > 5, DEADLINE, run)
        gone = next(machine for machine in net[2:] if machine.runs("ray::RolloutActor"))
        gone.cut()
        end(run)
        assert gone.runs("ray::RolloutActor")
    assert last_weights(shared / "run") == expected
    assert {row["lost"] for row in read_rows(shared / "run/lost.jsonl")} == {"rollout"}


def test_a_machine_with_another_disk(shared: Path) -> None:
    with machines(None, None, shared) as net:
        up(net, "head", "hand")
        output, _ = (run := start(net, shared, *ON_TWO)).communicate(timeout=DEADLINE)
    assert run.returncode == 2 and f"node m2 does not see the run folder {shared / 'run'}" in output.replace("\n", " ")
