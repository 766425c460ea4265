"""A run on three Ray nodes of this machine, of which one is taken in mid-run, with all workers that stand on it.

python lost_node.py ROOT: exit code 0 where the run ended by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import several_nodes  # before Ray
from ray.util import placement_group_table
from smoke_runs import rounds, smoke

PLACED = (
    "ray.address=auto",
    "rollout.max_workers=2",
    "reward.max_workers=2",
    "rollout.resources={hand: 1}",
    "reward.resources={hand: 1}",
    "learner.resources={learner: 1}",
    "rollout.cpus=0",
    "reward.cpus=0",
    "learner.rounds=12",
    "validation.every=12",
)


def occupied() -> set[str]:
    """Nodes that the room for workers lies on."""
    there = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    return {node for group in there if "hand" in group["bundles"][0] for node in group["bundles_to_node_id"].values()}


def main(root: Path) -> None:
    with several_nodes.head(num_cpus=2, resources={"learner": 1}) as nodes:
        pair = [nodes.add_node(num_cpus=1, resources={"hand": 4}, object_store_memory=150 * 10**6) for _ in range(2)]
        run = several_nodes.Run(smoke(root, "lost-node", *PLACED))
        run.wait(lambda: rounds(root / "lost-node") >= 4)
        nodes.remove_node(next(node for node in pair if node.node_id in occupied()), allow_graceful=False)
        print("a node is gone", flush=True)
        run.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
