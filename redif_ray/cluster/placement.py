"""Where workers may be, and room for all that a run starts with: all of it or none.

A run that held half of a cluster while it waits for the other half could wait for one that does the same. Ray Train
takes no foreign group for the learner, so the run keeps room for it in a group that it lets go of just before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from redif_ray.cluster.connect import bundle
from redif_ray.config import Learner, Workers
from redif_ray.interrupt import StopRequest

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
NODE = "ray.io/node-id"  # the label that Ray gives each node
SPLIT_SECONDS = 5  # that groups get to be made of room that was there a moment ago
FIRST_SECONDS, TELL_SECONDS = 5, 30  # after which a wait is told of, and told of again
Asked = tuple[list[dict[str, float]], list[dict[str, str]]]  # bundles of a group, and the labels of the node of each


class Telling:
    """Of a wait: when it is to be told of."""

    def __init__(self) -> None:
        self.at = time.monotonic() + FIRST_SECONDS

    def due(self) -> bool:
        if time.monotonic() < self.at:
            return False
        self.at = time.monotonic() + TELL_SECONDS
        return True


@dataclass(frozen=True, slots=True)
class Places:
    """Where the workers of a run go: into its group, if it has one, and beside it."""

    group: Any = None
    index: dict[str, int] = field(default_factory=dict)  # by role: the bundle of its first worker
    kept: Any = None  # the group that keeps the learner's room

    def options(self, name: str, role: Workers, number: int) -> dict[str, Any]:
        """Of the actor that is a role's worker of this number."""
        labels = {"label_selector": role.labels} if role.labels else {}
        if number >= role.first:  # in no group, be it one that places its children, whose room is for others
            return labels | {"scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=None)}
        if self.group is None or not bundle(role):
            return labels
        mine = self.index[name] + number
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=mine)}

    def let_learner_in(self) -> None:
        """Its room is free, for Ray Train to take. Who takes it instead has all that it needs, and comes to its end."""
        if self.kept is not None:
            remove_placement_group(self.kept)


def bundles(roles: Iterable[Workers | Learner]) -> Asked:
    """What the workers that a run starts with ask for, one bundle each, and the labels of its node."""
    placed = [role for role in roles if bundle(role) for _ in range(role.first)]
    return [bundle(role) for role in placed], [dict(role.labels) for role in placed]


@contextmanager
def reserved(roles: Mapping[str, Workers], learner: Learner | None, stop: StopRequest) -> Iterator[Places]:
    """Room for the workers that a run starts with, for the length of a block, and for its learner until it is let in;
    waits for both. Raises Interrupted.

    In a trial of a sweep that room is in the trial's own group, which Tune made.
    """
    ranks = {} if learner is None else {"learner": learner}
    asked, later = bundles(roles.values()), bundles(ranks.values())
    if not asked[0] or ray.get_runtime_context().should_capture_child_tasks_in_placement_group:
        yield Places()
        return
    index, count = {}, 0
    for name, role in roles.items():
        index[name] = count
        count += role.first if bundle(role) else 0
    group, kept = _room(asked, later, {**roles, **ranks}, stop)
    try:
        yield Places(group, index, kept)
    finally:
        for held in (group, kept):
            if held is not None:
                remove_placement_group(held)


def _room(asked: Asked, later: Asked, roles: Mapping[str, Workers | Learner], stop: StopRequest) -> tuple[Any, Any]:
    """Two groups. While room for both is not there none is held; where others took it meanwhile, it is waited for."""
    while True:
        whole = _group((asked[0] + later[0], asked[1] + later[1]))
        try:
            _wait(whole, roles, stop)
            if not later[0]:
                return whole, None
            found = placement_group_table(whole)["bundles_to_node_id"]
            nodes = [found[len(asked[0]) + rank] for rank in range(len(later[0]))]
        except BaseException:
            remove_placement_group(whole)
            raise
        remove_placement_group(whole)
        # Where it was: workers, put first, might take nodes that the learner alone needs.
        groups = _group((later[0], [{NODE: node} for node in nodes])), _group(asked)
        if all(group.wait(SPLIT_SECONDS) for group in groups):
            return groups[1], groups[0]
        for group in groups:
            remove_placement_group(group)


def _group(asked: Asked) -> Any:
    return placement_group(asked[0], strategy="PACK", bundle_label_selector=asked[1])


def _wait(group: Any, roles: Mapping[str, Workers | Learner], stop: StopRequest) -> None:
    telling = Telling()
    there = group.ready()  # once: each `group.wait` leaves 20 KB in Ray's head, and half a second is none to it
    while not ray.wait([there], timeout=POLL_SECONDS)[0]:
        stop.check()
        if telling.due():
            log.warning(
                "waiting for room for all that this run starts with: %s", lacking(roles, ray.available_resources())
            )


def learner_waits(learner: Learner) -> str:
    """What Ray Train has too little of for the ranks; empty where it waits for nothing."""
    asked, _ = bundles((learner,))
    groups = placement_group_table().values()
    if any(group["state"] == "PENDING" and list(group["bundles"].values()) == asked for group in groups):
        return lacking({"learner": learner}, ray.available_resources())
    return ""


def lacking(roles: Mapping[str, Workers | Learner], free: Mapping[str, float]) -> str:
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


def _said(role: Workers | Learner) -> str:
    labels = "".join(f", on a node with {key}={value}" for key, value in role.labels.items())
    return ", ".join(f"{amount:g} {kind}" for kind, amount in bundle(role).items()) + labels
