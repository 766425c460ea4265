"""A run that starts with one worker of each kind, gets more with a node that comes, and loses that node again.

python grown_run.py ROOT: exit code 0 where the run ended by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import several_nodes
from smoke_runs import rounds, smoke

from redif_ray.runs.jsonl import read_rows

NAME, LATE = "grown", {"rollout-1", "reward-1"}
GROWN = (
    "ray.address=auto",
    "rollout.max_workers=2",
    "reward.max_workers=2",
    "rollout.min_workers=1",
    "reward.min_workers=1",
    "rollout.labels={role: hand}",
    "reward.labels={role: hand}",
    "learner.labels={role: head}",
    "learner.rounds=60",
    "validation.every=60",
    "checkpoint.every=60",
)


def main(root: Path) -> None:
    folder = root / NAME
    node = {"num_cpus": 2, "labels": {"role": "hand"}, "object_store_memory": 150 * 10**6}

    def late() -> set[str]:
        return LATE & {span["row"] for span in read_rows(folder / "timeline.jsonl")}

    with several_nodes.head(num_cpus=1, labels={"role": "head"}) as nodes:
        nodes.add_node(**node)
        run = several_nodes.Run(smoke(root, NAME, *GROWN))
        run.wait(lambda: rounds(folder) >= 2)
        print(f"in round {rounds(folder)}, before the node: {sorted(late())}", flush=True)
        added = nodes.add_node(**node)
        run.wait(lambda: late() == LATE)
        print(f"in round {rounds(folder)}, with the node: {sorted(late())}", flush=True)
        nodes.remove_node(added, allow_graceful=False)
        gone = rounds(folder)
        run.wait(lambda: rounds(folder) > gone + 2)
        print(f"in round {rounds(folder)}, the node is gone", flush=True)
        run.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
