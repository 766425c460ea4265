"""The main memory of the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from redif_ray.config import Config
from redif_ray.planning.memory import Footprints, workers
from redif_ray.planning.nodes import Node, bundle, section

PROCESS_MB = 450  # torch, diffusers and Ray in one worker; shared pages are divided among the processes
RAY_MB = 900  # Ray's own processes with the dashboard
DRIVER_MB = 700  # the driver, which holds headers, features and pictures, and no network


def main_memory_mb(
    config: Config, found: Footprints, numbers: Mapping[str, int] | None = None, *, driver: bool = True
) -> float:
    """Return the main memory in MB of the processes of a run on one machine.

    numbers: of workers by role; None: all of the run's. driver: whether the driver is there, with what stands beside
    it. The learner has ended when the student is exported, so the larger of the two counts.
    """
    standing = {role: workers(config)[role][0] for role in found.roles} if numbers is None else dict(numbers)
    learner = standing.pop("learner", 0)
    mb = RAY_MB + sum(number * process_mb(config, found, role) for role, number in standing.items())
    last = learner * process_mb(config, found, "learner") if learner else 0.0
    if not driver:
        return mb + last
    return mb + 3 * PROCESS_MB + process_mb(config, found, "driver") + max(last, process_mb(config, found, "export"))


def tightest_node_mb(config: Config, found: Footprints, nodes: Iterable[Node]) -> tuple[float, float | None]:
    """Return MB of main memory that a node needs and MB that it has, of the node that is the shortest of memory.

    A node holds as many workers as its resources allow, since a run packs them. None: no node is known.
    """
    pairs = [
        (main_memory_mb(config, found, _standing(config, found, node), driver=node.driver), node.memory)
        for node in nodes
    ]
    return max(pairs, key=lambda pair: pair[0] / max(pair[1], 1), default=(main_memory_mb(config, found), None))


def _standing(config: Config, found: Footprints, node: Node) -> dict[str, int]:
    """Return how many workers of each role may stand on a node at once; those that need the most come first."""
    free, numbers = dict(node.resources), dict.fromkeys(found.roles, 0)
    for role in sorted(found.roles, key=lambda role: -process_mb(config, found, role)):
        asked = bundle(section(config, role))
        if not node.takes(section(config, role)):
            continue
        while numbers[role] < workers(config)[role][0] and all(
            free[kind] >= amount - 1e-9 for kind, amount in asked.items()
        ):
            numbers[role] += 1
            free |= {kind: free[kind] - amount for kind, amount in asked.items()}
    return numbers


def process_mb(config: Config, found: Footprints, role: str) -> float:
    """Return the main memory in MB of one process: of a worker of a role, of the "driver", or of the "export".

    A process without a GPU holds its tensors there, and one that takes turns on a GPU what it keeps between turns. The
    driver holds no network. The export loads one in float32 from its files.
    """
    if role == "driver":
        return DRIVER_MB
    if role == "export":
        return PROCESS_MB + found.export
    one, gpus = found.roles[role], workers(config)[role][1]
    if not gpus:
        return PROCESS_MB + one.total
    return PROCESS_MB + (one.weights + one.training if config.pipeline.colocate else 0)
