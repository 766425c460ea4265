"""The machines that a run is placed on, and which workers one of them takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from redif_ray.config import Config, Learner, Workers

ROLES = ("rollout", "reward", "learner")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster.

    resources: amounts by name, as Ray counts them. labels: by key. gpus: name and memory in MB of each GPU, empty where
    there is none or none is seen. memory: MB of main memory that processes may take. store: MB of the object store.
    driver: whether the run's driver is there.
    """

    resources: dict[str, float]
    labels: dict[str, str]
    gpus: tuple[tuple[str, float], ...]
    memory: float
    store: float
    driver: bool = False

    def takes(self, role: Workers | Learner) -> bool:
        """Tell whether a worker of a role may be placed here while nothing else is."""
        enough = all(self.resources.get(kind, 0) >= amount for kind, amount in bundle(role).items())
        return enough and role.labels.items() <= self.labels.items()


def section(config: Config, role: str) -> Workers | Learner:
    """Return the section of the configuration that describes a role's workers."""
    found: Workers | Learner = getattr(config, role)
    return found


def bundle(role: Workers | Learner) -> dict[str, float]:
    """Return the resources that Ray reserves for one worker of a role, by name; zero amounts are left out."""
    asked = {"CPU": role.cpus, "GPU": role.gpus} | role.resources
    return {kind: amount for kind, amount in asked.items() if amount}


def share_cards(config: Config) -> bool:
    """Tell whether each of several GPUs holds a rollout and a reward worker, beside a rank or in turns with one."""
    rollout, reward, learner = config.rollout, config.reward, config.learner
    alike = rollout.first == reward.first > 1 and rollout.labels == reward.labels
    beside_rank = learner.workers > 1 and 0 < learner.gpus < 1
    return (config.pipeline.colocate or beside_rank) and alike and rollout.gpus > 0 and reward.gpus > 0


def total(nodes: Iterable[Node]) -> dict[str, float]:
    """Return the sum of the resources of all nodes, by name."""
    found: dict[str, float] = {}
    for node in nodes:
        for kind, amount in node.resources.items():
            found[kind] = found.get(kind, 0) + amount
    return found
