"""Where workers may be, and room for those that a run starts with: all of it or none.

A run that held half of a cluster while it waits for the other half could wait for one that does the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from redif_ray.config import Workers
from redif_ray.pipeline.cluster import bundle
from redif_ray.pipeline.interrupt import StopRequest

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
FIRST_SECONDS, TELL_SECONDS = 5, 30  # after which a wait is told of, and told of again


@dataclass(frozen=True, slots=True)
class Places:
    """Where the workers of a run go: into its group, if it has one, and beside it."""

    group: Any = None
    index: dict[str, int] = field(default_factory=dict)  # by role: the bundle of its first worker

    def options(self, name: str, role: Workers, number: int) -> dict[str, Any]:
        """Of the actor that is a role's worker of this number."""
        labels = {"label_selector": role.labels} if role.labels else {}
        if number >= role.first:  # in no group, be it one that places its children, whose room is for others
            return labels | {"scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=None)}
        if self.group is None or not bundle(role):
            return labels
        mine = self.index[name] + number
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=mine)}


def bundles(roles: Iterable[Workers]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """What the workers that a run starts with ask for, one bundle each, and the labels of its node."""
    placed = [role for role in roles if bundle(role) for _ in range(role.first)]
    return [bundle(role) for role in placed], [dict(role.labels) for role in placed]


@contextmanager
def reserved(roles: Mapping[str, Workers], stop: StopRequest) -> Iterator[Places]:
    """Room for the workers that a run starts with, for the length of a block; waits for it. Raises Interrupted.

    In a trial of a sweep that room is in the trial's own group, which Tune made.
    """
    asked, labels = bundles(roles.values())
    if not asked or ray.get_runtime_context().should_capture_child_tasks_in_placement_group:
        yield Places()
        return
    index, count = {}, 0
    for name, role in roles.items():
        index[name] = count
        count += role.first if bundle(role) else 0
    group = placement_group(asked, strategy="PACK", bundle_label_selector=labels)
    try:
        _wait(group, roles, stop)
        yield Places(group, index)
    finally:
        remove_placement_group(group)


def _wait(group: Any, roles: Mapping[str, Workers], stop: StopRequest) -> None:
    tell = time.monotonic() + FIRST_SECONDS
    while not group.wait(POLL_SECONDS):
        stop.check()
        if time.monotonic() >= tell:
            log.warning("waiting for room for all workers that this run starts with: %s",
                        lacking(roles, ray.available_resources()))
            tell = time.monotonic() + TELL_SECONDS


def lacking(roles: Mapping[str, Workers], free: Mapping[str, float]) -> str:
    """What there is too little of, and for whom. free: what all nodes have left, by resource."""
    needs: dict[str, dict[str, float]] = {}
    for name, role in roles.items():
        for kind, amount in bundle(role).items():
            needs.setdefault(kind, {})[name] = amount * role.first
    short = [
        f"{sum(need.values()):g} of the resource {kind} ({', '.join(f'{n:g} {name}' for name, n in need.items())}), "
        f"of which {free.get(kind, 0):g} is free"
        for kind, need in needs.items()
        if free.get(kind, 0) < sum(need.values())
    ]
    if short:
        return "; ".join(short)
    each = "; ".join(f"{role.first} {name} with {_said(role)} each" for name, role in roles.items() if bundle(role))
    return f"enough is free, but not on nodes that one of these fits on: {each}"


def _said(role: Workers) -> str:
    labels = "".join(f", on a node with {key}={value}" for key, value in role.labels.items())
    return ", ".join(f"{amount:g} {kind}" for kind, amount in bundle(role).items()) + labels
