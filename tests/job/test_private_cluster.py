from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import worker

from redif_ray.cluster.connect import ENVIRONMENT

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def test_workers_inherit_the_environment_and_start_once() -> None:
    @ray.remote(num_cpus=0)
    def found() -> tuple[dict[str, str | None], str]:
        return {name: os.environ.get(name) for name in ENVIRONMENT}, ray.get_runtime_context().get_runtime_env_string()

    variables, environment = ray.get(found.remote())
    assert variables == {name: os.environ[name] for name in ENVIRONMENT}
    assert environment == "{}"


def test_only_this_machine_and_this_user_reach_it() -> None:
    """Every port that it listens on is one of loopback, and its folder is closed to others."""
    listening: dict[str, set[str]] = {}
    for process in psutil.Process().children(recursive=True):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                listening.setdefault(process.name(), set()).add(connection.laddr.ip.removeprefix("::ffff:"))
    assert {"gcs_server", "raylet"} <= set(listening)
    assert set().union(*listening.values()) <= {"127.0.0.1", "::1"}, listening
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert worker._global_node is not None
    folder = Path(worker._global_node.temp_dir)
    assert folder.parent.name == f"redif-{os.getuid()}" and folder.parent.stat().st_mode & 0o777 == 0o700


def test_signals_to_the_command_s_group_do_not_reach_it() -> None:
    groups = {os.getpgid(process.pid) for process in psutil.Process().children(recursive=True)}
    assert os.getpgid(0) not in groups


@pytest.mark.long
def test_ranks_of_one_node_listen_on_loopback_alone(tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from redif_ray.learner.process_group import ProcessGroup

    def loop(config: dict[str, str]) -> None:
        import torch
        import torch.distributed as dist

        total = torch.ones(1)
        dist.all_reduce(total)
        found = psutil.Process().net_connections("inet")
        listening = {each.laddr.ip.removeprefix("::ffff:") for each in found if each.status == psutil.CONN_LISTEN}
        Path(config["folder"], str(dist.get_rank())).write_text(f"{total.item()} {sorted(listening)}")

    trainer = TorchTrainer(
        loop,
        train_loop_config={"folder": str(tmp_path)},
        torch_config=ProcessGroup(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path / "train")),
    )
    trainer.fit()
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["2.0 ['127.0.0.1']"] * 2
