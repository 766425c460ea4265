"""A run on three Ray nodes of this machine, of which one is taken in mid-run, with all workers that stand on it.

python lost_node.py ROOT: exit code 0 where the run ended by itself. Ray starts nodes in the main thread only, so the
run has one of its own.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

from smoke_runs import rounds, smoke

from redif_ray.pipeline import cluster  # before Ray: the environment that it reads

import ray  # isort: skip
from ray.cluster_utils import Cluster  # isort: skip
from rich.console import Console

from redif_ray.pipeline.distill import run_part
from redif_ray.pipeline.interrupt import StopRequest

PLACED = (
    "ray.address=auto", "rollout.workers=2", "reward.workers=2", "rollout.resources={hand: 1}",
    "reward.resources={hand: 1}", "learner.resources={learner: 1}", "rollout.cpus=0", "reward.cpus=0",
    "learner.rounds=12", "validation.every=12",
)  # fmt: skip


def main(root: Path) -> int:
    (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
    nodes = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 2, "resources": {"learner": 1}, "include_dashboard": True, "dashboard_host": "127.0.0.1",
        "object_store_memory": 200 * 10**6,
    })  # fmt: skip
    _, taken = (
        nodes.add_node(num_cpus=1, resources={"hand": 4}, object_store_memory=150 * 10**6) for _ in range(2)
    )
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR",
             runtime_env={"env_vars": cluster.ENVIRONMENT})
    config = smoke(root, "lost-node", *PLACED)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            run_part(config, StopRequest(), resume=False, console=Console())
        except BaseException as error:
            failure.append(error)

    run = threading.Thread(target=work)
    run.start()
    while run.is_alive() and rounds(root / "lost-node") < 4:
        time.sleep(0.05)
    nodes.remove_node(taken, allow_graceful=False)
    print("a node is gone", flush=True)
    run.join()
    ray.shutdown()
    nodes.shutdown()
    if failure:
        raise failure[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
