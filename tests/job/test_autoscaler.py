"""A run on the node groups of cluster.yaml: Ray's own autoscaler starts them for it, and takes them back after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines import Machine, machines, possible
from ray.autoscaler._private.util import prepare_config
from smoke_runs import last_weights, plain_weights, smoke, summary
from test_machines import DEADLINE, PORT, RAY, UP_SECONDS, end, start, wait

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.skipif(not possible(), reason="a machine of its own takes root on Linux, and iproute2"),
]
ROUNDS = ("learner.rounds=100", "validation.every=100", "checkpoint.every=100")
COMMAND = (
    "rollout.max_workers=2",
    "rollout.min_workers=1",
    "rollout.resources.rollout=1",
    "reward.resources.reward=1",
    "learner.resources.learner=1",
    *ROUNDS,
)
IDLE_MINUTES = 0.5
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD = "f" * 51 + "00000"  # what that provider takes for the head
VARIABLES = [
    "env",
    "RAY_FAKE_CLUSTER=1",
    "AUTOSCALER_UPDATE_INTERVAL_S=1",
    "RAY_enable_autoscaler_v2=1",
    f"RAY_CLOUD_INSTANCE_ID={HEAD}",
    f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={HEAD}",
]


def groups() -> dict[str, Any]:
    """cluster.yaml for a provider whose nodes are processes of this machine; without GPUs, which it has not."""
    tree = prepare_config(yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text()))
    types = tree["available_node_types"]
    for group in types.values():
        group["node_config"] = {}
        group["resources"].pop("GPU", None)
    types["ray.head.default"] = types.pop("head") | {"max_workers": 0}  # that provider's name for it
    commands = {key: [] for key in tree if key.endswith("_commands")}
    return (
        tree
        | commands
        | {
            "head_node_type": "ray.head.default",
            "idle_timeout_minutes": IDLE_MINUTES,
            "docker": {},
            "file_mounts": {},
            "provider": {
                "type": "external",
                "module": PROVIDER,
                "launch_multiple": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "head_node_id": HEAD,
            },
        }
    )


def nodes(machine: Machine) -> int:
    return sum(process.name() == "raylet" for process in machine.processes())


def test_nodes_come_for_a_run_and_go_after_it(tmp_path: Path) -> None:
    (config := tmp_path / "autoscaling.json").write_text(json.dumps(groups()))
    with machines(None) as (machine,):
        machine.start(
            *VARIABLES,
            *RAY,
            "--head",
            f"--port={PORT}",
            f"--node-ip-address={machine.address}",
            "--num-cpus=0",
            '--resources={"head": 1}',
            "--include-dashboard=false",
            f"--autoscaling-config={config}",
        )
        wait(lambda: nodes(machine) == 1, UP_SECONDS)
        run = start([machine], tmp_path, *COMMAND)
        wait(lambda: nodes(machine) == 5, DEADLINE, run)  # head, reward, learner, and a second one for rollout
        end(run)
        wait(lambda: nodes(machine) == 1, DEADLINE)
    assert last_weights(tmp_path / "run") == plain_weights(smoke(tmp_path, "plain", *ROUNDS))
    assert set(summary(tmp_path / "run")["notes"]["workers"]) == {"rollout-0", "rollout-1", "reward-0"}
