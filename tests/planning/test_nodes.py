"""A machine of a cluster takes the workers that its resources and labels allow; the tightest memory decides."""

from __future__ import annotations

import pytest

from redif_ray.config import Config, load
from redif_ray.planning import host_memory
from redif_ray.planning.gpu_memory import fullest_gpu_mb, tightest_gpu_mb
from redif_ray.planning.host_memory import main_memory_mb, process_mb, tightest_node_mb
from redif_ray.planning.memory import OVERHEAD_MB, Footprint, Footprints
from redif_ray.planning.nodes import Node, total

ROLES = {"rollout": Footprint(100, 0, 50), "reward": Footprint(300, 0, 100), "learner": Footprint(100, 200, 700)}
FOUND = Footprints(ROLES, 10**6, 10**6, 1000, 4.0)
CLUSTER = (
    "ray.address=auto",
    "rollout={max_workers: 6, groups: 6, cpus: 2, gpus: 1, resources: {hand: 1}, labels: {market: spot}}",
    "reward={max_workers: 4, cpus: 2, gpus: 0.5, resources: {hand: 1}, labels: {market: spot}}",
    "learner={workers: 2, cpus: 4, gpus: 1, resources: {learner: 1}, labels: {market: own}}",
)


def config(*overrides: str) -> Config:
    found: Config = load(None, [*CLUSTER, *overrides])
    return found


def node(resources: dict[str, float], market: str, *gpus: float, memory: float = 1e6, driver: bool = False) -> Node:
    cards = tuple(("card", mb) for mb in gpus)
    return Node({"GPU": len(gpus), **resources}, {"market": market}, cards, memory, 100, driver)


SPOT = node({"CPU": 8, "hand": 4}, "spot", 24_000, 16_000)
OWN = node({"CPU": 8, "learner": 1}, "own", 80_000)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (SPOT, {"rollout", "reward"}),
        (OWN, {"learner"}),
        (node({"CPU": 8, "hand": 4}, "own", 80_000), set()),
        (node({"CPU": 1, "hand": 4}, "spot", 80_000), set()),
        (node({"CPU": 8, "hand": 4}, "spot"), set()),
    ],
)
def test_a_node_takes_whom_it_has_enough_for(there: Node, taken: set[str]) -> None:
    found = config()
    roles = {"rollout": found.rollout, "reward": found.reward, "learner": found.learner}
    assert {name for name, role in roles.items() if there.takes(role)} == taken


def test_each_gpu_is_compared_with_the_roles_of_its_node() -> None:
    """The learner needs the most, on a large GPU; the smallest GPU of the spot node is the one that is tight."""
    found = config()
    two_rewards = 2 * (ROLES["reward"].total + OVERHEAD_MB)
    assert tightest_gpu_mb(found, ROLES, [SPOT, OWN]) == (two_rewards, 16_000)
    own = node({"CPU": 8, "learner": 1}, "own", 2000)
    assert tightest_gpu_mb(found, ROLES, [SPOT, own]) == (ROLES["learner"].total + OVERHEAD_MB, 2000)


def test_of_gpus_that_nobody_has_seen_nothing_is_known() -> None:
    found = config()
    for there in ([], [node({"CPU": 8, "hand": 4, "GPU": 2}, "spot")]):
        assert tightest_gpu_mb(found, ROLES, there) == (fullest_gpu_mb(found, ROLES), None)


def test_a_node_holds_as_many_processes_as_it_has_resources_for() -> None:
    """A node of 8 CPUs has 4 of the 6 rollout workers, or of the rewards, which need more; on CPUs here."""
    found = config("rollout.gpus=0", "reward.gpus=0", "learner.gpus=0")
    rollout, reward, learner = (process_mb(found, FOUND, role) for role in ROLES)
    spot, own = (node({"CPU": 8, kind: 4}, market) for kind, market in (("hand", "spot"), ("learner", "own")))
    assert tightest_node_mb(found, FOUND, [spot]) == (host_memory.RAY_MB + 4 * reward, 1e6)
    assert tightest_node_mb(found, FOUND, [own]) == (host_memory.RAY_MB + 2 * learner, 1e6)
    wide = node({"CPU": 11, "hand": 5}, "spot")
    assert tightest_node_mb(found, FOUND, [wide]) == (host_memory.RAY_MB + 4 * reward + rollout, 1e6)
    tight = node({"CPU": 4, "learner": 4}, "own", memory=1000)
    assert tightest_node_mb(found, FOUND, [spot, own, tight])[1] == 1000


def test_the_node_of_the_driver_has_what_stands_beside_it() -> None:
    found = load(None)
    whole = main_memory_mb(found, FOUND)
    assert tightest_node_mb(found, FOUND, [Node({"CPU": 64}, {}, (), 9e3, 1, driver=True)]) == (whole, 9e3)
    bare = tightest_node_mb(found, FOUND, [Node({"CPU": 64}, {}, (), 9e3, 1)])[0]
    driver = 3 * host_memory.PROCESS_MB + process_mb(found, FOUND, "driver")
    export, learner = (process_mb(found, FOUND, process) for process in ("export", "learner"))
    assert whole - bare == pytest.approx(driver + max(export, learner) - learner)


def test_resources_are_added_up() -> None:
    assert total([SPOT, OWN]) == {"GPU": 3, "CPU": 16, "hand": 4, "learner": 1}
    assert total([]) == {}
