"""Placement of a run's workers. A run reserves the resources of all workers that it starts with, or none.

Two runs that each held half of a cluster could wait for each other for ever. Ray Train accepts no placement group of
others for the learner, so the run holds the learner's resources in a group of its own and removes that group just
before Ray Train starts.
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

from redif_ray.config import Learner, Workers
from redif_ray.interrupt import StopRequest
from redif_ray.planning.nodes import bundle

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
NODE = "ray.io/node-id"  # label that Ray sets on each node
SPLIT_SECONDS = 5  # time limit to create two groups from the resources of one that was just removed
FIRST_SECONDS, TELL_SECONDS = 5, 30  # waiting time before the first message, and between messages
Asked = tuple[
    list[dict[str, float]], list[dict[str, str]]
]  # the bundles of a placement group, and the node labels of each


class Telling:
    """A timer that says when to log that something is still being waited for."""

    def __init__(self) -> None:
        self.at = time.monotonic() + FIRST_SECONDS

    def due(self) -> bool:
        """Tell whether a message is due; if so, the next one is due TELL_SECONDS later."""
        if time.monotonic() < self.at:
            return False
        self.at = time.monotonic() + TELL_SECONDS
        return True


@dataclass(frozen=True, slots=True)
class Places:
    """Placement groups of a run, and the actor options that put its workers into them.

    group: of the workers that the run starts with, or None. index: the bundle of each role's first worker.
    kept: the group that holds the learner's resources, or None.
    """

    group: Any = None
    index: dict[str, int] = field(default_factory=dict)
    kept: Any = None

    def options(self, name: str, role: Workers, number: int) -> dict[str, Any]:
        """Return the Ray actor options that place worker `number` of role `name`."""
        labels = {"label_selector": role.labels} if role.labels else {}
        if number >= role.first:  # None: not even in a group that captures child tasks, which has no bundle for it
            return labels | {"scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=None)}
        if self.group is None or not bundle(role):
            return labels
        bundle_index = self.index[name] + number
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle_index)
        return {"scheduling_strategy": strategy}

    def let_learner_in(self) -> None:
        """Release the learner's resources so that Ray Train can claim them.

        Another run that claims them first holds all that it needs, so it finishes: there is no deadlock.
        """
        if self.kept is not None:
            remove_placement_group(self.kept)


def bundles(roles: Iterable[Workers | Learner]) -> Asked:
    """Return one bundle for each worker that a run starts with and that needs resources, and its node labels."""
    placed = [role for role in roles if bundle(role) for _ in range(role.first)]
    return [bundle(role) for role in placed], [dict(role.labels) for role in placed]


def shared_bundles(roles: Iterable[Workers]) -> Asked:
    """Return bundles for the workers of several roles that share GPUs: each holds one worker of every role."""
    workers = list(roles)
    whole: dict[str, float] = {}
    for role in workers:
        for kind, amount in bundle(role).items():
            whole[kind] = whole.get(kind, 0) + amount
    return [whole] * workers[0].first, [dict(workers[0].labels)] * workers[0].first


@contextmanager
def reserved(
    roles: Mapping[str, Workers], learner: Learner | None, stop: StopRequest, *, shared: bool = False
) -> Iterator[Places]:
    """Reserve resources for the workers that a run starts with and for its learner while the block runs.

    Waits until both are there; raises Interrupted if the user stops the run meanwhile. `Places.let_learner_in` releases
    the learner's part early. In a trial of a sweep nothing is reserved: Tune has made a group for the trial.

    shared: whether worker i of every role is on the same GPU, beside one rank of the learner.
    """
    ranks = {} if learner is None else {"learner": learner}
    asked, later = shared_bundles(roles.values()) if shared else bundles(roles.values()), bundles(ranks.values())
    if not asked[0] or ray.get_runtime_context().should_capture_child_tasks_in_placement_group:
        yield Places()
        return
    index, count = {}, 0
    for name, role in roles.items():
        index[name] = count
        count += role.first if bundle(role) and not shared else 0
    room = _room_beside_ranks if shared and later[0] else _room
    group, kept = room(asked, later, {**roles, **ranks}, stop)
    try:
        yield Places(group, index, kept)
    finally:
        _remove(group, kept)


def _room(asked: Asked, later: Asked, roles: Mapping[str, Workers | Learner], stop: StopRequest) -> tuple[Any, Any]:
    """Return the placement groups of the workers and of the learner (None without ranks); wait for both.

    One group for both is awaited first, so that a run holds nothing while it waits. Then it is removed and two groups
    are made in its place; if another run takes the resources in between, the wait starts again.
    """
    while True:
        whole = _group((asked[0] + later[0], asked[1] + later[1]))
        try:
            _wait(whole, roles, stop)
            if not later[0]:
                return whole, None
            node_of = placement_group_table(whole)["bundles_to_node_id"]
            nodes = [node_of[len(asked[0]) + rank] for rank in range(len(later[0]))]
        except BaseException:
            remove_placement_group(whole)
            raise
        remove_placement_group(whole)
        # The learner comes first and on the same nodes: workers could take nodes that only the learner's ranks need.
        groups = _group((later[0], [{NODE: node} for node in nodes])), _group(asked)
        if all(group.wait(SPLIT_SECONDS) for group in groups):
            return groups[1], groups[0]
        _remove(*groups)


def _room_beside_ranks(
    asked: Asked, later: Asked, roles: Mapping[str, Workers | Learner], stop: StopRequest
) -> tuple[Any, Any]:
    """Return the placement groups of the workers and of the learner, whose ranks are on one GPU each.

    Ranks come first: each takes more than half of a GPU, so no two share one, and workers fill what is left. In one
    group of both, Ray could put workers of two bundles on one GPU, where no rank then has room. Where workers find no
    room soon, the ranks give way too, so that a run never waits with a part of what it needs.
    """
    telling = Telling()
    while True:
        ranks = _group(later)
        workers = None
        try:
            _wait(ranks, roles, stop)
            workers = _group(asked)
            if workers.wait(SPLIT_SECONDS):
                return workers, ranks
        except BaseException:
            _remove(ranks, workers)
            raise
        _remove(ranks, workers)
        if telling.due():
            _tell(roles)
        stop.check()


def _remove(*groups: Any) -> None:
    for group in groups:
        if group is not None:
            remove_placement_group(group)


def _group(asked: Asked) -> Any:
    return placement_group(asked[0], strategy="PACK", bundle_label_selector=asked[1])


def _wait(group: Any, roles: Mapping[str, Workers | Learner], stop: StopRequest) -> None:
    telling = Telling()
    # Not `group.wait`: each call leaves 20 KB in Ray's head and rounds half a second down to none.
    ready = group.ready()
    while not ray.wait([ready], timeout=POLL_SECONDS)[0]:
        stop.check()
        if telling.due():
            _tell(roles)


def _tell(roles: Mapping[str, Workers | Learner]) -> None:
    log.warning("waiting for room for all that this run starts with: %s", lacking(roles, ray.available_resources()))


def learner_waits(learner: Learner) -> str:
    """Return the text of `lacking` for the learner while Ray Train waits for resources, an empty one otherwise."""
    asked, _ = bundles((learner,))
    groups = placement_group_table().values()
    if any(group["state"] == "PENDING" and list(group["bundles"].values()) == asked for group in groups):
        return lacking({"learner": learner}, ray.available_resources())
    return ""


def lacking(roles: Mapping[str, Workers | Learner], free: Mapping[str, float]) -> str:
    """Return a text that says which resources are too few, and for which roles.

    free: amounts that all nodes together have left, by resource.
    """
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
    each = "; ".join(f"{role.first} {name} with {_needs(role)} each" for name, role in roles.items() if bundle(role))
    return f"enough is free in total, but at least one of these fits on no node: {each}"


def _needs(role: Workers | Learner) -> str:
    labels = "".join(f", on a node with {key}={value}" for key, value in role.labels.items())
    return ", ".join(f"{amount:g} {kind}" for kind, amount in bundle(role).items()) + labels
