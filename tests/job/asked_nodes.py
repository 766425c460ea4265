"""Doctor on a cluster of three Ray nodes of this machine, of which two have GPUs in name.

python asked_nodes.py FOLDER...: a node with GPUs for each folder, which holds a program in place of nvidia-smi. Prints
what doctor says, and, as JSON, the needs that are not met and the nodes.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import several_nodes  # before Ray
from rich.console import Console

from redif_ray.cluster.nodes import nodes
from redif_ray.config import load
from redif_ray.job import requirements

ROLES = ("ray.address=auto", "rollout.gpus=0.25", "reward.gpus=0.25", "learner.gpus=0.5")


def main(*folders: str) -> None:
    path = os.environ["PATH"]
    with several_nodes.head(num_cpus=4, num_gpus=0) as cluster:
        for folder in folders:
            os.environ["PATH"] = f"{folder}:{path}"
            cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=150 * 10**6, labels={"from": folder})
        config = load("smoke", [*ROLES, "learner.microbatch=null", "evaluation.batch=null"])
        view, lacking = requirements.report(config)
        Console(width=160).print(view)
        print(json.dumps({"lacking": [need.what for need in lacking], "nodes": [asdict(n) for n in nodes(config)]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
