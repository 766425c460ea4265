"""The memory of the GPUs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from redif_ray.config import Config
from redif_ray.planning.memory import OVERHEAD_MB, Footprint, workers
from redif_ray.planning.nodes import Node, section, share_cards


def tightest_gpu_mb(
    config: Config, roles: Mapping[str, Footprint], nodes: Iterable[Node]
) -> tuple[float, float | None]:
    """Return MB that a GPU needs and MB that it has, of the GPU that is the shortest of memory; None: none is known.

    On each node that is the smallest GPU, filled by workers of the roles that the node takes.
    """
    found: list[tuple[float, float]] = []
    for node in nodes:
        here = {role: one for role, one in roles.items() if node.takes(section(config, role))}
        needed = fullest_gpu_mb(config, here)
        if needed and node.gpus:
            found.append((needed, min(mb for _, mb in node.gpus)))
    if not found:
        return fullest_gpu_mb(config, roles), None
    return max(found, key=lambda pair: pair[0] / pair[1])


def fullest_gpu_mb(config: Config, roles: Mapping[str, Footprint]) -> float:
    """Return the memory in MB of the fullest GPU, which workers of `roles` share; 0 where none of them has a GPU.

    Workers whose shares fit on one GPU may be placed there together, and their memory is added up. With
    `pipeline.colocate` the learner and the other workers take turns, so only the larger of the two counts; and where
    GPUs are shared, each has one worker of every role.
    """
    numbers = workers(config)
    if share_cards(config):
        return _together_mb(config, [role for role in roles if numbers[role][1]], roles)
    shares = [(role, numbers[role][1]) for role in roles for _ in range(numbers[role][0]) if numbers[role][1]]
    shares.sort(key=lambda share: -roles[share[0]].total)
    fullest = 0.0
    for i, (role, share) in enumerate(shares):
        room, together = 1 - min(share, 1), [role]
        for other, more in shares[:i] + shares[i + 1 :]:
            if more <= room + 1e-9:
                room, together = room - more, [*together, other]
        fullest = max(fullest, _together_mb(config, together, roles))
    return fullest


def _together_mb(config: Config, together: list[str], roles: Mapping[str, Footprint]) -> float:
    learner = sum(roles[role].total for role in together if role == "learner")
    others = sum(roles[role].total for role in together if role != "learner")
    mb = max(learner, others) if config.pipeline.colocate else learner + others
    return mb + OVERHEAD_MB * len(together)
